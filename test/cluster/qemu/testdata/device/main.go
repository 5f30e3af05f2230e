// Command device prints the path of the disk that has a serial and is on a bus, as blockvol finds it.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/blockvol/blockvol/mount"
)

func main() {
	host, err := mount.New(mount.Config{Published: "/mnt", Buses: []string{os.Args[2]}})
	if err == nil {
		var device mount.Device
		if device, err = host.Find(context.Background(), os.Args[1]); err == nil {
			fmt.Println(device.Path)
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
