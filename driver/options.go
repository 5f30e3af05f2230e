package driver

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// optionNames lists every create option. Those that depend on the provider are in its Supports.
var optionNames = []string{
	"encrypted", "from", "fstype", "gid", "iops", "kms-key", "mkfs-options", "mode", "mount-options", "reclaim", "size", "snapshot",
	"snapshot-keep", "snapshot-schedule", "tags", "throughput", "type", "uid", "volume-id", "zone",
}

// cloudOptions are those that a provider may not have.
var cloudOptions = []string{
	"encrypted", "from", "iops", "kms-key", "snapshot", "snapshot-keep", "snapshot-schedule", "tags", "throughput", "type", "zone",
}

// longestEntry is what a value of the Record has at most, in bytes.
const longestEntry = 255

// parseOptions turns Docker's options into a request, or tells everything that is wrong with them. An option without a
// value counts as not given: compose files send them so.
func (d *Driver) parseOptions(name string, options map[string]string) (controller.Request, error) {
	r := controller.Request{Spec: providers.Spec{Name: name, Record: providers.Record{}}, Record: providers.Record{}, Options: map[string]string{}}
	supported := d.supported()
	var problems []error
	for _, key := range slices.Sorted(maps.Keys(options)) {
		value := strings.TrimSpace(options[key])
		var err error
		switch {
		case !slices.Contains(optionNames, key):
			err = fmt.Errorf("unknown option %q: the options are %s", key, strings.Join(d.allowedOptions(), ", "))
		case slices.Contains(cloudOptions, key) && !slices.Contains(supported, key):
			err = fmt.Errorf("option %q is not available with this provider: the options are %s", key, strings.Join(d.allowedOptions(), ", "))
		case !printable(value):
			err = fmt.Errorf("option %q has a value with characters that cannot be printed", key)
		case value == "":
		default:
			if err = setOption(&r, key, value); err != nil {
				err = fmt.Errorf("option %s=%q: %w", key, value, err)
			}
		}
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return controller.Request{}, sentences(err)
	}
	if err := d.complete(&r); err != nil {
		return controller.Request{}, err
	}
	return r, nil
}

// printable tells whether a text can be written down for people and comes back the same.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) || c == utf8.RuneError })
}

// supported are the options of cloudOptions that this provider has.
func (d *Driver) supported() []string {
	supported := d.controller.Supports()
	if d.controller.HasSnapshots() {
		supported = append(slices.Clone(supported), "from", "snapshot-keep", "snapshot-schedule")
	}
	return supported
}

func (d *Driver) allowedOptions() []string {
	supported := d.supported()
	return slices.DeleteFunc(slices.Clone(optionNames), func(o string) bool {
		return slices.Contains(cloudOptions, o) && !slices.Contains(supported, o)
	})
}

func setOption(r *controller.Request, key, value string) (err error) {
	switch key {
	case "size":
		r.Spec.Size, err = volume.ParseSize(value)
		r.Sized = true
	case "type":
		r.Spec.Type = value
	case "iops":
		r.Spec.IOPS, err = positive(value)
		value = strconv.Itoa(r.Spec.IOPS)
	case "throughput":
		r.Spec.Throughput, err = positive(value)
		value = strconv.Itoa(r.Spec.Throughput)
	case "encrypted":
		if r.Spec.Encrypted, err = strconv.ParseBool(value); err != nil {
			err = errors.New("must be true or false")
		}
		value = strconv.FormatBool(r.Spec.Encrypted)
	case "kms-key":
		r.Spec.KMSKey = value
	case "zone":
		r.Spec.Zone = value
	case "snapshot":
		r.Spec.Snapshot = value
	case "from":
		r.From = value
		r.Record[volume.KeyFrom] = value
	case "snapshot-schedule":
		r.Record[volume.KeySchedule] = value
	case "snapshot-keep":
		r.Record[volume.KeyKeep] = value
	case "volume-id":
		r.Adopt = value
	case "tags":
		if r.Spec.Tags, err = parseTags(value); err == nil {
			r.Record[volume.KeyTags] = digestOf(r.Spec.Tags)
		}
	default:
		return setRecorded(r, key, value)
	}
	switch key {
	case "from", "snapshot-schedule", "snapshot-keep":
		return recordable(value)
	case "type", "iops", "throughput", "encrypted", "kms-key", "zone":
		r.Options[key] = value // as the provider will write it
	}
	return err
}

// setRecorded sets an option that only the volume's record holds.
func setRecorded(r *controller.Request, key, value string) (err error) {
	switch key {
	case volume.KeyFSType:
		if !slices.Contains(mount.FSTypes(), value) {
			err = fmt.Errorf("must be one of %s", strings.Join(mount.FSTypes(), ", "))
		}
	case volume.KeyUID, volume.KeyGID:
		// 2^32-1 is "no id" to the kernel, chown(2).
		if n, e := strconv.ParseUint(value, 10, 32); e != nil || n == math.MaxUint32 {
			err = errors.New("must be a whole number from 0 to 4294967294")
		}
	case volume.KeyMode:
		_, err = volume.ParseMode(value)
	case volume.KeyReclaim:
		switch volume.Reclaim(value) {
		case volume.ReclaimDelete, volume.ReclaimRetain, volume.ReclaimSnapshot:
		default:
			err = fmt.Errorf("must be %s, %s or %s", volume.ReclaimDelete, volume.ReclaimRetain, volume.ReclaimSnapshot)
		}
	}
	r.Record[key] = value
	return cmp.Or(recordable(value), err)
}

// recordable refuses what a tag of some cloud has no room for.
func recordable(value string) error {
	if len(value) > longestEntry {
		return errors.New("is longer than 255 bytes")
	}
	return nil
}

// smallest is the least size in bytes that each mkfs accepts with room for data.
var smallest = map[string]int64{"ext4": 16 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}

// complete fills in defaults and checks what depends on several options.
func (d *Driver) complete(r *controller.Request) error {
	if r.Record[volume.KeyReclaim] == string(volume.ReclaimSnapshot) && !d.controller.HasSnapshots() {
		return fmt.Errorf("option reclaim=%q: this provider has no snapshots: use %s or %s", volume.ReclaimSnapshot, volume.ReclaimDelete, volume.ReclaimRetain)
	}
	if _, err := volume.ParseSchedule(r.Record[volume.KeySchedule], r.Record[volume.KeyKeep]); err != nil {
		return fmt.Errorf("option %w", err)
	}
	maps.Copy(r.Spec.Record, r.Record)
	if r.Adopt != "" && (r.Sized || r.Spec.Snapshot != "" || r.From != "" || len(r.Options) > 0) {
		return errors.New("option volume-id adopts a disk as it is: leave out size, snapshot, from, and what is the cloud's to decide")
	}
	if r.From != "" && r.Spec.Snapshot != "" {
		return errors.New("options from and snapshot: the volume can be a copy of one of them: leave the other out")
	}
	if r.Adopt != "" || r.Spec.Snapshot != "" || r.From != "" {
		if r.Record[volume.KeyFSType] != "" || r.Record[volume.KeyMkfsOptions] != "" {
			return errors.New("with volume-id, snapshot or from there is a file system already, which stays as it is: leave out fstype and mkfs-options")
		}
		// Whatever is on it is data, even if no signature can be seen.
		r.Spec.Record[volume.KeyFormatted] = "before"
		// The snapshot or the disk may have another volume's policy in its record. An adopted disk may be somebody's original.
		policy := volume.ReclaimDelete
		if r.Adopt != "" {
			policy = volume.ReclaimRetain
		}
		r.Spec.Record[volume.KeyReclaim] = cmp.Or(r.Record[volume.KeyReclaim], string(policy))
		r.Spec.Record[volume.KeyTags] = cmp.Or(r.Record[volume.KeyTags], "none")
		if d.controller.HasSnapshots() {
			r.Spec.Record[volume.KeySchedule] = cmp.Or(r.Record[volume.KeySchedule], volume.NoSchedule)
			r.Spec.Record[volume.KeyKeep] = cmp.Or(r.Record[volume.KeyKeep], volume.DefaultKeep)
		}
		// Which file system is on it is seen at the first mount.
		var err error
		for _, fstype := range mount.FSTypes() {
			if err = checkFSOptions(r, fstype); err == nil {
				break
			}
		}
		return err
	}
	fstype := cmp.Or(r.Record[volume.KeyFSType], d.defaultFSType)
	r.Spec.Record[volume.KeyFSType] = fstype
	r.Spec.Record[volume.KeyLayout] = mount.LayoutData
	r.Spec.Size = cmp.Or(r.Spec.Size, d.defaultSize)
	if least := smallest[fstype]; r.Spec.Size < least {
		return fmt.Errorf("size %s is too small for %s: it needs at least %s", volume.FormatSize(r.Spec.Size), fstype, volume.FormatSize(least))
	}
	if mount.ReadOnly(fstype, volume.SettingsOf(r.Spec.Record).MountOptions) {
		return errors.New("option mount-options: a new volume has to be written to, so it cannot be mounted with ro; let its containers mount it read-only")
	}
	return checkFSOptions(r, fstype)
}

func checkFSOptions(r *controller.Request, fstype string) error {
	s := volume.SettingsOf(r.Spec.Record)
	return mount.CheckOptions(fstype, s.MkfsOptions, s.MountOptions)
}

func positive(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 {
		return 0, errors.New("must be a whole number above 0")
	}
	return n, nil
}

func parseTags(value string) (map[string]string, error) {
	tags := make(map[string]string)
	for pair := range strings.SplitSeq(value, ",") {
		key, val, found := strings.Cut(pair, "=")
		key = strings.TrimSpace(key)
		if !found || key == "" {
			return nil, errors.New("must be a list like team=db,stage=prod")
		}
		if _, twice := tags[key]; twice {
			return nil, fmt.Errorf("has %q twice", key)
		}
		tags[key] = strings.TrimSpace(val)
	}
	return tags, nil
}

// digestOf is the same for the same tags, in whichever order.
func digestOf(tags map[string]string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", tags)) // in the order of the keys
	return hex.EncodeToString(sum[:8])
}

// sentences joins errors on one line: Docker shows a single one.
func sentences(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}
