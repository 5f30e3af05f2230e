package mount

import (
	"context"
	"fmt"
)

// check makes a file system that is mounted nowhere consistent. ext4 is checked by e2fsck -p, which replays the journal
// and repairs what is safe to repair without being asked. xfs replays its log when it is mounted, and a log that cannot be
// replayed is never thrown away here (xfs_repair -L loses data); btrfs is consistent by itself.
// Errors: ErrDamaged if a person has to decide.
func check(ctx context.Context, dev Device, fstype string) error {
	if fstype != "ext4" {
		return nil
	}
	res, err := run(ctx, "e2fsck", "-p", dev.Path)
	if err != nil {
		return fmt.Errorf("the ext4 on device %s was not checked, so it is not mounted: %w", dev.Path, err)
	}
	const (
		corrected   = 1
		reboot      = 2 // asks for a reboot, for a root file system; this one is not mounted
		uncorrected = 4
		operational = 8 // a superblock or journal that cannot be used is among these
	)
	switch {
	case res.code&^(corrected|reboot) == 0:
		return nil
	case res.code&^(corrected|reboot|uncorrected|operational) == 0:
		return fmt.Errorf("%w: e2fsck cannot repair the ext4 on device %s by itself (%s), so it is not mounted; run e2fsck -f %s by hand or restore a snapshot", ErrDamaged, dev.Path, res.words(), dev.Path)
	}
	return fmt.Errorf("the ext4 on device %s was not checked, so it is not mounted: e2fsck ended with code %d: %s", dev.Path, res.code, res.words())
}
