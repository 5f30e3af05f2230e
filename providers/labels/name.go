package labels

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
)

var unreadable = regexp.MustCompile(`[^a-z0-9]+`)

// Name is what a volume is called in a cloud whose names are few: at most so many (20 or more) lower-case letters, digits and
// single hyphens, beginning with a letter. It is what can be read of the name, for people, and 80 bits of a digest of cluster
// and name, by which no two ever share one. It will always be the same.
func Name(cluster, name string, most int) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s%d:%s", len(cluster), cluster, len(name), name)
	digest := encoding.EncodeToString(h.Sum(nil)[:10])
	shown := strings.Trim(unreadable.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if shown == "" || shown[0] <= '9' {
		shown = strings.TrimSuffix("v-"+shown, "-")
	}
	shown = strings.TrimSuffix(shown[:min(len(shown), most-len(digest)-1)], "-")
	return shown + "-" + digest
}
