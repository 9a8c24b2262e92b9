package seal

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestBoxBindsKeyDomainCounterAndData(t *testing.T) {
	k := RandomKey()
	b := NewBox(k)
	sealed := b.Seal(nil, DomainFrame, 7, []byte("guest bytes"), []byte("header"))
	if got, err := b.Open(nil, DomainFrame, 7, sealed, []byte("header")); err != nil || string(got) != "guest bytes" {
		t.Fatalf("got %q, %v", got, err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"counter": func() ([]byte, error) { return b.Open(nil, DomainFrame, 8, sealed, []byte("header")) },
		"domain":  func() ([]byte, error) { return b.Open(nil, DomainIndex, 7, sealed, []byte("header")) },
		"data":    func() ([]byte, error) { return b.Open(nil, DomainFrame, 7, sealed, []byte("Header")) },
		"key":     func() ([]byte, error) { return NewBox(RandomKey()).Open(nil, DomainFrame, 7, sealed, []byte("header")) },
		"bytes":   func() ([]byte, error) { return b.Open(nil, DomainFrame, 7, sealed[1:], []byte("header")) },
	} {
		if _, err := open(); !errors.Is(err, ErrAuth) {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

// Keys do not reach logs, whatever verb prints them.
func TestKeysDoNotPrint(t *testing.T) {
	k := RandomKey()
	for _, verb := range []string{"%v", "%s", "%#v", "%+v"} {
		if s := fmt.Sprintf(verb, k); s != "(key)" {
			t.Errorf("%s: %s", verb, s)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	k, err := NewKeyring()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Unmarshal(b); err != nil && strings.Contains(err.Error(), "AGE-SECRET-KEY-1") {
			t.Error("an error quotes a key")
		}
	})
}
