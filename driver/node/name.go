package node

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// DirOf maps a volume's name to the name of its directory and journal entry, one to one: plain names stand for themselves, all
// others for their hash behind a character that no plain name begins with.
func DirOf(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "_" + hex.EncodeToString(sum[:])
}
