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

// ErrEnded is returned for a disk that was to be put into a machine that has ended, or that has ended meanwhile.
var ErrEnded = errors.New("the machine has ended")

// maxPorts is what eight slots of the machine's first bus hold: a port is one of eight functions of a slot.
const maxPorts = 64

// again is how long after a guest was asked to let a device go it is asked anew: while it boots it may not hear.
const again = time.Second

// portArguments are the sockets into which disks are plugged. They reserve no I/O space, of which there is too little for
// so many and which no disk wants.
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

// A device is a disk in a machine: QEMU's device, QEMU's node, which is a connection to a server, and the server. It takes
// its port until nothing of it is left; on a bus without ports, that is its place among the disks that there can be.
type device struct {
	m       *Machine
	model   Model
	number  int    // of all devices that the machine has had
	name    string // of the device
	node    string
	serial  string
	port    int
	server  *server
	gone    chan struct{} // closed when QEMU has no such device any more
	cleared chan struct{} // closed when nothing is left; never, if the machine ends before

	removing bool // under m.mu
}

// plug puts a disk into a machine. When it returns the machine has it, the guest may not have seen it yet. If it fails there
// is no server any more, and nothing else is left unless QEMU has ceased to answer.
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

// allot finds a port. If it finds one, the caller owes m.work an end.
func (m *Machine) allot(model Model, serial string) (*device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return nil, ErrEnded
	}
	port := slices.Index(m.ports, nil)
	if port < 0 {
		return nil, fmt.Errorf("all %d ports of the machine are taken", len(m.ports))
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

// device returns the device with a serial, nil if there is none.
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

// notice is called for QEMU's events.
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

// connectNode makes QEMU the server's one client. There is no second time: a node whose server has ended fails at once, and
// its socket's path is gone, and never used for another server, which might have the same disk, in use by another machine.
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
		select { // it does not listen yet, in all likelihood
		case <-server.ended:
			return server.failure()
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// remove begins to take the device from the machine, if that has not begun. The guest does its part when it runs.
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

// clear lasts until nothing is left, or the machine ends.
func (d *device) clear() {
	defer d.m.work.Done()
	ask := time.NewTicker(again)
	defer ask.Stop()
	for here := true; here; {
		// Refused it is, too, while the guest has not answered yet.
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

// dropNode lasts until there is no such node, or the machine ends, which makes it false.
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

// grow shows the guest that the image has become larger. A server and its client keep the size that they began with: so a
// second pair takes the place of the first, between two requests of the guest. Nothing else may be done about the device
// meanwhile.
func (d *device) grow(bytes int64, serve func() (*server, error)) error {
	m := d.m
	m.mu.Lock()
	if m.over {
		m.mu.Unlock()
		return ErrEnded
	}
	if d.removing {
		m.mu.Unlock()
		return errors.New("the guest has been asked to let it go")
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

// left waits until nothing is left of the device, or of the machine, but no longer than so long.
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
