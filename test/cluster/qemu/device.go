package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrEnded is the error of plugging a disk into a machine that has ended.
var ErrEnded = errors.New("the machine has ended")

// maxPorts is the number of ports in eight slots of the machine's first bus, with eight functions each.
const maxPorts = 64

// again is the interval of requests to the guest to release a device: it may miss one while it boots.
const again = time.Second

// portArguments returns the ports for disks. They reserve no I/O space, which is scarce and not needed by disks.
func portArguments(ports int) []string {
	var args []string
	for i := range ports {
		args = append(args, "-device", fmt.Sprintf(
			"pcie-root-port,id=%s,chassis=%d,slot=%d,addr=0x%x.%x,multifunction=on,io-reserve=0",
			portName(i), i+1, i+1, 0x10+i/8, i%8))
	}
	return args
}

func portName(i int) string { return fmt.Sprintf("port%d", i) }

// device is a disk in a machine: QEMU's device, QEMU's block node, which is a connection to a server, and the server. It
// occupies its port (on a bus without ports, its place in the limit) until all of them are gone.
type device struct {
	m       *Machine
	model   Model
	number  int    // number among all devices that the machine has had
	name    string // ID of the device
	node    string
	serial  string
	port    int
	server  *server
	gone    chan struct{} // closed when QEMU's device is gone
	cleared chan struct{} // closed when all is gone; not if the machine ends before

	removing bool // protected by m.mu
}

// plug plugs a disk into a machine. When it returns, the machine has the disk, but the guest may not have seen it yet. After an
// error the server is gone, and all else too unless QEMU has stopped answering.
func (m *Machine) plug(model Model, serial string, serve func() (*server, error)) (*device, error) {
	d, err := m.allot(model, serial)
	if err != nil {
		return nil, err
	}
	defer m.work.Done()
	if d.server, err = serve(); err != nil {
		d.free()
		return nil, err
	}
	if err = d.server.lock(); err == nil {
		err = m.connectNode(d.node, d.server)
	}
	if err == nil {
		err = m.execute("device_add", d.arguments(), nil)
	}
	if err != nil {
		d.server.kill()
		d.remove()
		select {
		case <-d.cleared:
		case <-m.monitor.Done():
			err = fmt.Errorf("%w: %w", ErrEnded, err)
		case <-time.After(qemuTimeout):
		}
		return nil, err
	}
	return d, nil
}

// allot reserves a port. After success the caller must call m.work.Done.
func (m *Machine) allot(model Model, serial string) (*device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return nil, ErrEnded
	}
	port := slices.Index(m.ports, nil)
	if port < 0 {
		return nil, fmt.Errorf("all %d ports of the machine are in use", len(m.ports))
	}
	m.named++
	name := fmt.Sprintf("disk%d", m.named)
	d := &device{
		m: m, model: model, number: m.named, name: name, node: name, serial: serial, port: port,
		gone: make(chan struct{}), cleared: make(chan struct{}),
	}
	m.ports[port] = d
	m.work.Add(1)
	return d, nil
}

func (d *device) free() {
	d.m.mu.Lock()
	d.m.ports[d.port] = nil
	d.m.mu.Unlock()
	close(d.cleared)
}

// device returns the device with a serial, or nil.
func (m *Machine) device(serial string) *device {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.ports {
		if d != nil && d.serial == serial {
			return d
		}
	}
	return nil
}

// notice handles QEMU's events.
func (m *Machine) notice(event Event) {
	var about struct {
		Device string `json:"device"`
	}
	if event.Name != "DEVICE_DELETED" || json.Unmarshal(event.Data, &about) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.ports {
		if d != nil && d.name == about.Device {
			close(d.gone)
		}
	}
}

// connectNode connects QEMU to the server as its only client. It never reconnects: if the server has ended, the node fails at
// once. The socket's path is removed and never reused, since another server could serve the same disk for another machine.
func (m *Machine) connectNode(node string, server *server) error {
	ctx, cancel := context.WithTimeout(context.Background(), qemuTimeout)
	defer cancel()
	for {
		err := m.monitor.Execute(ctx, "blockdev-add", map[string]any{
			"driver": "nbd", "node-name": node, "reconnect-delay": 0, "discard": "unmap",
			"server": map[string]any{"type": "unix", "path": server.socket},
		}, nil)
		if err == nil {
			return server.hide()
		}
		if !errors.As(err, new(*Refusal)) {
			return err
		}
		select { // the server probably does not listen yet
		case <-server.ended:
			return server.failure()
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// remove begins to remove the device from the machine, unless that has begun. The guest takes part when it runs.
func (d *device) remove() {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.removing || d.m.over {
		return
	}
	d.removing = true
	d.m.work.Add(1)
	go d.clear()
}

func (d *device) isRemoving() bool {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return d.removing
}

// clear waits until all is gone or the machine ends.
func (d *device) clear() {
	defer d.m.work.Done()
	ask := time.NewTicker(again)
	defer ask.Stop()
	for here := true; here; {
		// QEMU also refuses while the guest has not answered an earlier request.
		err := d.m.execute("device_del", map[string]any{"id": d.name}, nil)
		var refusal *Refusal
		if errors.As(err, &refusal) && refusal.Class == "DeviceNotFound" {
			break
		}
		select {
		case <-d.gone:
			here = false
		case <-ask.C:
		case <-d.m.monitor.Done():
			return
		}
	}
	if !d.m.dropNode(d.node) {
		return
	}
	d.server.kill()
	d.free()
}

// dropNode waits until the node is gone and returns true, or returns false if the machine ends.
func (m *Machine) dropNode(node string) bool {
	for {
		err := m.execute("blockdev-del", map[string]any{"node-name": node}, nil)
		if err == nil || errors.As(err, new(*Refusal)) && strings.Contains(err.Error(), "Failed to find node") {
			return true
		}
		select {
		case <-time.After(again):
		case <-m.monitor.Done():
			return false
		}
	}
}

// grow shows the guest the larger image. A server and its client keep their initial size, so a second pair replaces the first
// between two requests of the guest. Nothing else may be done with the device meanwhile.
func (d *device) grow(bytes int64, serve func() (*server, error)) error {
	m := d.m
	m.mu.Lock()
	if m.over {
		m.mu.Unlock()
		return ErrEnded
	}
	if d.removing {
		m.mu.Unlock()
		return errors.New("the disk is being removed")
	}
	m.named++
	node := fmt.Sprintf("disk%d", m.named)
	m.work.Add(1)
	m.mu.Unlock()
	defer m.work.Done()

	next, err := serve()
	if err != nil {
		return err
	}
	if err = m.connectNode(node, next); err == nil {
		err = m.execute("qom-set", map[string]any{
			"path": "/machine/peripheral/" + d.name, "property": "drive", "value": node,
		}, nil)
	}
	if err != nil {
		next.kill()
		m.dropNode(node)
		return err
	}
	before, last := d.server, d.node
	d.server, d.node = next, node
	m.dropNode(last)
	before.kill()
	if err := d.server.lock(); err != nil {
		return err
	}
	return m.execute("block_resize", map[string]any{"node-name": node, "size": bytes}, nil)
}

// left waits until the device or the machine is gone, at most for the limit.
func (d *device) left(limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	select {
	case <-d.cleared:
	case <-d.m.monitor.Done():
		<-d.m.ended
	case <-ctx.Done():
		select {
		case <-d.cleared:
		case <-d.m.ended:
		default:
			return false
		}
	}
	return true
}
