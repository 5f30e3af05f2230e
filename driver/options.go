package driver

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// The keys of a volume's Record: what any node must know to mount it. Their values are the create options, verbatim.
const (
	recFormatted    = "formatted" // the file system it was formatted with; set after formatting, never unset
	recLayout       = "layout"    // what the container sees: mount.LayoutData or mount.LayoutRoot; never changes
	recFSType       = "fstype"
	recMkfsOptions  = "mkfs-options"
	recMountOptions = "mount-options"
	recUID          = "uid"
	recGID          = "gid"
	recMode         = "mode"
	recReclaim      = "reclaim"
	recTags         = "tags" // a digest: the tags themselves are the cloud's, and people change them there
)

// Reclaim is what Remove does with the disk.
type Reclaim string

// The reclaim policies.
const (
	ReclaimDelete   Reclaim = "delete"
	ReclaimRetain   Reclaim = "retain"
	ReclaimSnapshot Reclaim = "snapshot"
)

// request is a volume as somebody asked for it.
type request struct {
	spec     providers.Spec
	adopt    string // id of an existing disk
	sized    bool   // the size was asked for; it is not the default
	explicit providers.Record
	cloud    map[string]string // what was asked for of the cloud's disk, by option
}

// optionNames lists every create option. Those that depend on the provider are in its Supports.
var optionNames = []string{
	"encrypted", "fstype", "gid", "iops", "kms-key", "mkfs-options", "mode", "mount-options", "reclaim", "size", "snapshot",
	"tags", "throughput", "type", "uid", "volume-id", "zone",
}

// cloudOptions are those that a provider may not have.
var cloudOptions = []string{"encrypted", "iops", "kms-key", "snapshot", "tags", "throughput", "type", "zone"}

// parseOptions turns Docker's options into a request, or tells everything that is wrong with them. An option without a
// value counts as not given: compose files send them so.
func (d *Driver) parseOptions(name string, options map[string]string) (request, error) {
	r := request{spec: providers.Spec{Name: name, Record: providers.Record{}}, explicit: providers.Record{}, cloud: map[string]string{}}
	supported := d.provider.Supports()
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
			if err = r.set(key, value); err != nil {
				err = fmt.Errorf("option %s=%q: %w", key, value, err)
			}
		}
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return request{}, sentences(err)
	}
	if err := d.complete(&r); err != nil {
		return request{}, err
	}
	return r, nil
}

// printable tells whether a text can be written down for people and comes back the same.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) || c == utf8.RuneError })
}

func (d *Driver) allowedOptions() []string {
	supported := d.provider.Supports()
	return slices.DeleteFunc(slices.Clone(optionNames), func(o string) bool {
		return slices.Contains(cloudOptions, o) && !slices.Contains(supported, o)
	})
}

func (r *request) set(key, value string) (err error) {
	switch key {
	case "size":
		r.spec.Size, err = ParseSize(value)
		r.sized = true
	case "type":
		r.spec.Type = value
	case "iops":
		r.spec.IOPS, err = positive(value)
		value = strconv.Itoa(r.spec.IOPS)
	case "throughput":
		r.spec.Throughput, err = positive(value)
		value = strconv.Itoa(r.spec.Throughput)
	case "encrypted":
		if r.spec.Encrypted, err = strconv.ParseBool(value); err != nil {
			err = errors.New("must be true or false")
		}
		value = strconv.FormatBool(r.spec.Encrypted)
	case "kms-key":
		r.spec.KMSKey = value
	case "zone":
		r.spec.Zone = value
	case "snapshot":
		r.spec.Snapshot = value
	case "volume-id":
		r.adopt = value
	case "tags":
		if r.spec.Tags, err = parseTags(value); err == nil {
			r.explicit[recTags] = digestOf(r.spec.Tags)
		}
	case recFSType:
		if !slices.Contains(mount.FSTypes(), value) {
			err = fmt.Errorf("must be one of %s", strings.Join(mount.FSTypes(), ", "))
		}
	case recUID, recGID:
		// 2^32-1 is "no id" to the kernel, chown(2).
		if n, e := strconv.ParseUint(value, 10, 32); e != nil || n == math.MaxUint32 {
			err = errors.New("must be a whole number from 0 to 4294967294")
		}
	case recMode:
		_, err = parseMode(value)
	case recReclaim:
		switch Reclaim(value) {
		case ReclaimDelete, ReclaimRetain, ReclaimSnapshot:
		default:
			err = fmt.Errorf("must be %s, %s or %s", ReclaimDelete, ReclaimRetain, ReclaimSnapshot)
		}
	}
	switch key {
	case recFSType, recUID, recGID, recMode, recReclaim, recMkfsOptions, recMountOptions:
		if len(value) > 255 {
			return errors.New("is longer than 255 bytes")
		}
		r.explicit[key] = value
	case "type", "iops", "throughput", "encrypted", "kms-key", "zone":
		r.cloud[key] = value // as the provider will write it
	}
	return err
}

// smallest is the least size in bytes that each mkfs accepts with room for data.
var smallest = map[string]int64{"ext4": 16 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}

// complete fills in defaults and checks what depends on several options.
func (d *Driver) complete(r *request) error {
	if r.explicit[recReclaim] == string(ReclaimSnapshot) && d.snapshots == nil {
		return fmt.Errorf("option reclaim=%q: this provider has no snapshots: use %s or %s", ReclaimSnapshot, ReclaimDelete, ReclaimRetain)
	}
	maps.Copy(r.spec.Record, r.explicit)
	if r.adopt != "" && (r.sized || r.spec.Snapshot != "" || len(r.cloud) > 0) {
		return errors.New("option volume-id adopts a disk as it is: leave out size, snapshot, and what is the cloud's to decide")
	}
	if r.adopt != "" || r.spec.Snapshot != "" {
		if r.explicit[recFSType] != "" || r.explicit[recMkfsOptions] != "" {
			return errors.New("with volume-id or snapshot there is a file system already, which stays as it is: leave out fstype and mkfs-options")
		}
		// Whatever is on it is data, even if no signature can be seen.
		r.spec.Record[recFormatted] = "before"
		// The snapshot or the disk may have another volume's policy in its record. An adopted disk may be somebody's original.
		policy := ReclaimDelete
		if r.adopt != "" {
			policy = ReclaimRetain
		}
		r.spec.Record[recReclaim] = cmp.Or(r.explicit[recReclaim], string(policy))
		r.spec.Record[recTags] = cmp.Or(r.explicit[recTags], "none")
		// Which file system is on it is seen at the first mount.
		var err error
		for _, fstype := range mount.FSTypes() {
			if err = checkFSOptions(r, fstype); err == nil {
				break
			}
		}
		return err
	}
	fstype := cmp.Or(r.explicit[recFSType], d.defaultFSType)
	r.spec.Record[recFSType] = fstype
	r.spec.Record[recLayout] = mount.LayoutData
	r.spec.Size = cmp.Or(r.spec.Size, d.defaultSize)
	if least := smallest[fstype]; r.spec.Size < least {
		return fmt.Errorf("size %s is too small for %s: it needs at least %s", FormatSize(r.spec.Size), fstype, FormatSize(least))
	}
	if mount.ReadOnly(fstype, settingsOf(r.spec.Record).mountOptions) {
		return errors.New("option mount-options: a new volume has to be written to, so it cannot be mounted with ro; let its containers mount it read-only")
	}
	return checkFSOptions(r, fstype)
}

func checkFSOptions(r *request, fstype string) error {
	s := settingsOf(r.spec.Record)
	return mount.CheckOptions(fstype, s.mkfsOptions, s.mountOptions)
}

// settings are a volume's Record, decoded.
type settings struct {
	formatted    bool
	fstype       string // empty for a disk from elsewhere: whatever is on it
	layout       string
	mkfsOptions  []string
	mountOptions []string
	uid, gid     *int
	mode         *os.FileMode
	reclaim      Reclaim
}

func settingsOf(rec providers.Record) settings {
	s := settings{
		formatted:   rec[recFormatted] != "",
		fstype:      rec[recFSType],
		layout:      cmp.Or(rec[recLayout], mount.LayoutRoot),
		mkfsOptions: strings.Fields(rec[recMkfsOptions]),
		reclaim:     Reclaim(cmp.Or(rec[recReclaim], string(ReclaimDelete))),
	}
	if o := rec[recMountOptions]; o != "" {
		s.mountOptions = strings.Split(o, ",")
	}
	if n, err := strconv.ParseUint(rec[recUID], 10, 32); err == nil {
		id := int(n)
		s.uid = &id
	}
	if n, err := strconv.ParseUint(rec[recGID], 10, 32); err == nil {
		id := int(n)
		s.gid = &id
	}
	if m, err := parseMode(rec[recMode]); err == nil {
		s.mode = &m
	}
	return s
}

func parseMode(value string) (os.FileMode, error) {
	n, err := strconv.ParseUint(value, 8, 12)
	if err != nil {
		return 0, errors.New("must be an octal mode from 0 to 7777, like 0750")
	}
	mode := os.FileMode(n & 0o777)
	for bit, flag := range map[uint64]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if n&bit != 0 {
			mode |= flag
		}
	}
	return mode, nil
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

var sizeForm = regexp.MustCompile(`^([0-9]+)\s*([A-Za-z]*)$`)

// sizeUnits: a plain number is GiB, as clouds sell disks; K, M, G, T are read as powers of 1024, as Docker does; only the
// forms that say so (KB, MB, GB, TB) are powers of 1000.
var sizeUnits = map[string]int64{
	"": 1 << 30, "b": 1,
	"k": 1 << 10, "ki": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mi": 1 << 20, "mib": 1 << 20,
	"g": 1 << 30, "gi": 1 << 30, "gib": 1 << 30, "t": 1 << 40, "ti": 1 << 40, "tib": 1 << 40,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
}

// ParseSize reads a size and returns bytes: "10" and "10Gi" are 10 GiB, "500MiB" and "1TB" are what they say.
func ParseSize(value string) (int64, error) {
	bad := errors.New("must be a size in GiB like 10, or with a unit like 500MiB, 20GB or 1TiB")
	m := sizeForm.FindStringSubmatch(value)
	if m == nil {
		return 0, bad
	}
	unit, known := sizeUnits[strings.ToLower(m[2])]
	n, err := strconv.ParseInt(m[1], 10, 64)
	if !known || err == nil && n == 0 {
		return 0, bad
	}
	if err != nil || n > math.MaxInt64/unit { // the form has digits only: what ParseInt refuses is out of range
		return 0, fmt.Errorf("too large: must be at most %dTiB", int64(math.MaxInt64>>40))
	}
	return n * unit, nil
}

// FormatSize writes bytes as ParseSize reads them, in the largest binary unit that is exact.
func FormatSize(bytes int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if bytes >= u.size && bytes%u.size == 0 {
			return fmt.Sprintf("%d%s", bytes/u.size, u.name)
		}
	}
	return fmt.Sprintf("%dB", bytes)
}

// sentences joins errors on one line: Docker shows a single one.
func sentences(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}
