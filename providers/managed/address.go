package managed

import (
	"net/netip"
	"slices"
)

// Addresses returns a node's addresses. What is no address is left out.
func Addresses(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// Private returns the private ones of a node's addresses, for a cloud that does not tell which they are.
func Private(texts ...string) []netip.Addr {
	return slices.DeleteFunc(Addresses(texts...), func(a netip.Addr) bool { return !a.IsPrivate() })
}
