package mount

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A device that an operator attaches to another bus may have any serial.
func TestADeviceOnAnotherBusIsNotTheVolume(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	const serial = "vol0123456789abcdef0"
	ctx := context.Background()
	files := map[string]map[string]string{
		"loop":   {"loop/backing_file": "/home/" + serial + "\n"},
		"nvme":   {"device/serial": serial + "\n", subsystem: "class/nvme"},
		"mmc":    {"device/serial": serial + "\n", subsystem: "bus/mmc"},
		"scsi":   {"device/vpd_pg80": "\x00\x80\x00\x14" + serial, subsystem: "bus/scsi"},
		"virtio": {"serial": serial, subsystem: "bus/virtio"},
		"":       {"device/serial": serial + "\n"},
	}
	for on, shown := range files {
		shown["dev"], shown["size"] = fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "65536\n"
		for asked := range buses {
			t.Run(asked+" asked, on "+on, func(t *testing.T) {
				fakeSysfs(t, h, map[string]map[string]string{d.Name: shown})
				known, err := h.Find(ctx, serial)
				if on == "mmc" || on == "" {
					known = Device{Name: d.Name, Path: d.Path, Major: d.Major, Minor: d.Minor, Serial: serial}
				} else {
					require.NoError(t, err)
				}
				h.buses = map[string]bus{asked: buses[asked]}
				dev, err := h.Find(ctx, serial)
				if on == asked {
					require.NoError(t, err)
					assert.Equal(t, d.Path, dev.Path)
					return
				}
				require.ErrorIs(t, err, ErrNoDevice)
				require.ErrorContains(t, err, fmt.Sprintf("on a bus where volumes appear (%s), though %s (%s) shows it on another", asked, d.Name, cmp.Or(on, "unknown")))
				require.NoError(t, h.WaitGone(ctx, serial), "it is not waited for")
				_, err = h.Probe(ctx, known)
				require.ErrorIs(t, err, ErrWrongDevice)
			})
		}
	}
	t.Run("beside the volume", func(t *testing.T) {
		fakeSysfs(t, h, map[string]map[string]string{d.Name: files["nvme"], "loop999": files["loop"]})
		h.buses = map[string]bus{"nvme": buses["nvme"]}
		dev, err := h.Find(ctx, serial)
		require.NoError(t, err)
		assert.Equal(t, d.Path, dev.Path)
	})
}

func TestADeviceWithoutASerialIsNotUsed(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	for name, on := range map[string]string{"loop": "", "nvme": "class/nvme", "scsi": "bus/scsi", "virtio": "bus/virtio"} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": "65536\n", "loop/offset": "0\n"}
			if on != "" {
				delete(files, "loop/offset")
				files[subsystem] = on
			}
			fakeSysfs(t, h, map[string]map[string]string{d.Name: files})
			_, err := h.Probe(context.Background(), d.Device)
			require.ErrorIs(t, err, ErrWrongDevice)
			require.ErrorContains(t, err, "does not have the serial")
		})
	}
}

// QEMU's page 0x80 has room for 36 bytes. Page 0x83 has a longer serial in full, beside other designators.
func TestALongSerialOfAQEMUDiskIsReadInFull(t *testing.T) {
	const long = "volume-of-64-characters-0123456789abcdefghijklmnopqrstuvwxyz-end"
	name := func(set, kind byte, name string) string { return string([]byte{set, kind, 0, byte(len(name))}) + name }
	page := func(names ...string) string {
		all := strings.Join(names, "")
		return string([]byte{0, 0x83, byte(len(all) >> 8), byte(len(all))}) + all
	}
	nid := name(1, 3, "\x50\x00\x00\x00\x00\x00\x00\x01") // binary, of the network address authority
	h := newHost(t)
	d := newDisk(t, ext4Size)
	for _, c := range []struct {
		what, pg80, pg83 string
		found            bool
	}{
		{"as QEMU has it", long[:36], page(name(2, 0, long), nid), true},
		{"behind another", long[:36], page(nid, name(2, 0, long)), true},
		{"another disk that begins so", long[:36], page(name(2, 0, long[:63]+"D"), nid), false},
		{"a disk that begins otherwise", "another-of-36-characters-0123456789a", page(name(2, 0, long)), false},
		{"a shorter serial", long[:35], page(name(2, 0, long)), false},
		{"no such page", long[:36], "", false},
		{"of a port", long[:36], page(name(2, 0x10, long)), false},
		{"of the vendor and product", long[:36], page(name(2, 1, long)), false},
		{"cut off", long[:36], page(name(2, 0, long))[:60], false},
	} {
		t.Run(c.what, func(t *testing.T) {
			files := map[string]string{
				"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": fmt.Sprintf("%d\n", d.Size/512),
				"device/vpd_pg80": "\x00\x80\x00" + string(rune(len(c.pg80))) + c.pg80, subsystem: "bus/scsi",
			}
			if c.pg83 != "" {
				files["device/vpd_pg83"] = c.pg83
			}
			fakeSysfs(t, h, map[string]map[string]string{d.Name: files})
			dev, err := h.Find(context.Background(), long)
			if !c.found {
				require.ErrorIs(t, err, ErrNoDevice)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, long, dev.Serial)
		})
	}
}

func FuzzPageSerial(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x0812345678"))
	f.Add([]byte("\x00\x80\xff\xff1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := pageSerial(b); s != "" {
			assert.Equal(t, byte(0x80), b[1])
			assert.Contains(t, string(b[4:]), s)
			assert.Equal(t, strings.TrimSpace(s), s)
		}
	})
}

func FuzzHasDesignator(f *testing.F) {
	f.Add([]byte("\x00\x83\x00\x0c\x02\x00\x00\x0812345678"), "12345678")
	f.Add([]byte("\x00\x83\xff\xff\x02\x00\x00\xff1"), "1")
	f.Fuzz(func(t *testing.T, page []byte, serial string) {
		if serial != "" && hasDesignator(page, serial) {
			assert.Contains(t, string(page[8:]), serial)
		}
	})
}

func FuzzIdentities(f *testing.F) {
	f.Add([]byte("vol0123456789abcdef0\n"), "vol0123456789abcdef0")
	f.Add([]byte("/a/b (deleted)\n"), "b")
	f.Fuzz(func(t *testing.T, content []byte, serial string) {
		for _, bus := range buses {
			if shown := bus.parse(content); serial != "" && bus.matches("", shown, serial) {
				assert.NotEmpty(t, shown, bus.file)
				assert.Contains(t, string(content), shown, bus.file)
				assert.True(t, strings.HasPrefix(serial, shown), bus.file)
			}
		}
	})
}

func TestADeviceThatDoesNotAnswerDelaysCallsOnlyBriefly(t *testing.T) {
	h := newHost(t)
	h.identityTimeout = 20 * time.Millisecond
	fakeSysfs(t, h, map[string]map[string]string{"vdb": {subsystem: "bus/virtio"}})
	serial := filepath.Join(h.sysfs, "block", "vdb", "serial")
	require.NoError(t, unix.Mkfifo(serial, 0o600)) // the kernel asks a virtio disk for its serial
	for name, ask := range map[string]func() error{
		"Find": func() error { _, err := h.Find(context.Background(), "disk"); return err },
		"Wait": func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second) // long after the timeout
			defer cancel()
			_, err := h.Wait(ctx, "disk")
			return err
		},
		"WaitGone": func() error { return h.WaitGone(context.Background(), "disk") },
	} {
		answered := make(chan error, 1)
		go func() { answered <- ask() }()
		select {
		case err := <-answered:
			require.ErrorIs(t, err, errNoAnswer, name)
			if name != "Wait" {
				require.NotErrorIs(t, err, ErrNoDevice, "a device that does not answer is not missing")
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s does not return", name)
		}
	}
	for range 2 { // so that the reads end
		f, err := os.OpenFile(serial, os.O_WRONLY, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
}
