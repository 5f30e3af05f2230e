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

// Digest returns 64 hexadecimal digits, different for different lists of texts.
func Digest(texts ...string) string { return hex.EncodeToString(sum(texts...)) }

func sum(texts ...string) []byte {
	h := sha256.New()
	for _, text := range texts {
		fmt.Fprintf(h, "%d:%s", len(text), text)
	}
	return h.Sum(nil)
}

// Name returns a volume's name in a cloud that restricts names: up to most (20 or more) lower-case letters, digits and single
// hyphens, beginning with a letter. It is the readable part of the name, for people, and 80 bits of a digest of cluster and name, so
// that no two volumes share it. It must never change in a later version.
func Name(cluster, name string, most int) string {
	digest := encoding.EncodeToString(sum(cluster, name)[:10])
	shown := strings.Trim(unreadable.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if shown == "" || shown[0] <= '9' {
		shown = strings.TrimSuffix("v-"+shown, "-")
	}
	shown = strings.TrimSuffix(shown[:min(len(shown), most-len(digest)-1)], "-")
	return shown + "-" + digest
}

// NameAt returns the name to use if those of the turns before it are taken, as by forgotten disks. Turn 0 is Name.
func NameAt(turn int, cluster, name string, most int) string {
	if turn > 0 {
		cluster += "\x00" + strconv.Itoa(turn)
	}
	return Name(cluster, name, most)
}
