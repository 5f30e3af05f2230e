// Command device prints the path of the disk with this serial, on one bus or any, found as blockvol does.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/blockvol/blockvol/mount"
)

func main() {
	serial, buses := os.Args[1], os.Args[2:]
	if len(buses) == 0 {
		buses = []string{"nvme", "scsi", "virtio"}
	}
	host, err := mount.New(mount.Config{Published: "/mnt", Buses: buses})
	if err == nil {
		var device mount.Device
		if device, err = host.Find(context.Background(), serial); err == nil {
			fmt.Println(device.Path)
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
