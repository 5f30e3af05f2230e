package labels

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var unreadable = regexp.MustCompile(`[^a-z0-9]+`)

// Digest is one for each list of texts: 64 hexadecimal digits.
func Digest(texts ...string) string { return hex.EncodeToString(sum(texts...)) }

func sum(texts ...string) []byte {
	h := sha256.New()
	for _, text := range texts {
		fmt.Fprintf(h, "%d:%s", len(text), text)
	}
	return h.Sum(nil)
}

// Name is what a volume is called in a cloud whose names are few: at most so many (20 or more) lower-case letters, digits and
// single hyphens, beginning with a letter. It is what can be read of the name, for people, and 80 bits of a digest of cluster
// and name, by which no two ever share one. It will always be the same.
func Name(cluster, name string, most int) string {
	digest := encoding.EncodeToString(sum(cluster, name)[:10])
	shown := strings.Trim(unreadable.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if shown == "" || shown[0] <= '9' {
		shown = strings.TrimSuffix("v-"+shown, "-")
	}
	shown = strings.TrimSuffix(shown[:min(len(shown), most-len(digest)-1)], "-")
	return shown + "-" + digest
}

// NameAt is Name at the given turn, 0 the first: what a volume is called if the names of the turns before are taken, as by disks
// that were forgotten.
func NameAt(turn int, cluster, name string, most int) string {
	if turn > 0 {
		cluster += "\x00" + strconv.Itoa(turn)
	}
	return Name(cluster, name, most)
}
