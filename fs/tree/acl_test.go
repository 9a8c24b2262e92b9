package tree

import (
	"strings"
	"testing"
)

func FuzzACL(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xd2\x04\x00\x00\x20\x00\x05\x00\xff\xff\xff\xff"))
	f.Add([]byte("\x02\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := aclText(b)
		if err == nil && len(b) > 4 && strings.Count(text, ",") != len(b)/8-1 {
			t.Errorf("%x is %q", b, text)
		}
	})
}

func TestACLText(t *testing.T) {
	got, err := aclText([]byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xd2\x04\x00\x00\x08\x00\x01\x00\x07\x00\x00\x00\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"))
	if want := "user::rw-,user:1234:r--,group:7:--x,mask::rwx,other::---"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
