package mount

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func FuzzUevent(f *testing.F) {
	f.Add([]byte("add@/devices/virtual/block/loop3\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=loop3\x00"))
	f.Add([]byte("libudev\x00\xfe\xed\xca\xfeSUBSYSTEM=block\x00"))
	f.Add([]byte("add@/devices/net\x00SUBSYSTEM=net\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isBlockEvent(b) {
			assert.Contains(t, string(b), "@/")
			assert.Contains(t, string(b), "SUBSYSTEM=block")
		}
	})
}

func TestKernelEvents(t *testing.T) {
	assert.True(t, isBlockEvent([]byte("change@/devices/virtual/block/loop3\x00ACTION=change\x00SUBSYSTEM=block\x00")))
	assert.True(t, isBlockEvent([]byte("remove@/devices/x\x00SUBSYSTEM=block")))
	assert.False(t, isBlockEvent([]byte("add@/devices/x\x00SUBSYSTEM=net\x00")))
	assert.False(t, isBlockEvent([]byte("libudev\x00\xfe\xed\xca\xfe\x00SUBSYSTEM=block\x00")))
	assert.False(t, isBlockEvent(nil))
}
