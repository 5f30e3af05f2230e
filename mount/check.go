package mount

import (
	"context"
	"fmt"
)

// check makes a file system consistent that is not mounted. For ext4 it runs e2fsck -p, which replays the journal and repairs what
// can be repaired safely. xfs replays its log when it is mounted; a log that cannot be replayed is never discarded here, since
// xfs_repair -L loses data. btrfs is always consistent.
// Errors: ErrDamaged if a person must decide.
func check(ctx context.Context, dev Device, fstype string) error {
	if fstype != "ext4" {
		return nil
	}
	res, err := run(ctx, "e2fsck", "-p", dev.Path)
	if err != nil {
		return fmt.Errorf("%w; the ext4 on device %s could not be checked, so it is not mounted", err, dev.Path)
	}
	const (
		corrected   = 1
		reboot      = 2 // for a root file system; this one is not mounted
		uncorrected = 4
		operational = 8 // also for a superblock or journal that cannot be used
	)
	switch {
	case res.code&^(corrected|reboot) == 0:
		return nil
	case res.code&^(corrected|reboot|uncorrected|operational) == 0:
		return fmt.Errorf("%w: e2fsck cannot repair the ext4 on device %s automatically (%s), so it is not mounted; run e2fsck -f %s by hand or restore a snapshot", ErrDamaged, dev.Path, res.message(), dev.Path)
	}
	return fmt.Errorf("e2fsck ended with code %d (%s), so the ext4 on device %s is not mounted", res.code, res.message(), dev.Path)
}
