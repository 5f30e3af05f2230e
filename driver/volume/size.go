package volume

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

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
