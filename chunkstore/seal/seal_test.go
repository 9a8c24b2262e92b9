package seal

import (
	"bytes"
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

func TestSlots(t *testing.T) {
	k, err := NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	recovery, err := NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"a passphrase", recovery} {
		slot, err := k.Slot(secret)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(slot, k.ChunkID[:]) || bytes.Contains(slot, []byte("identity")) {
			t.Error("the slot shows what it holds")
		}
		got, err := OpenSlot(slot, secret)
		if err != nil || got.ChunkID != k.ChunkID || got.Structure != k.Structure {
			t.Errorf("open: %v", err)
		}
		wrapped, err := k.WrapPackKey(k.ChunkID)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := got.UnwrapPackKey(wrapped); err != nil || p != k.ChunkID {
			t.Errorf("unwrap: %v", err)
		}
		for _, wrong := range []string{"another", "", "AGE-SECRET-KEY-1NONSENSE"} {
			if _, err := OpenSlot(slot, wrong); !errors.Is(err, ErrWrongSecret) {
				t.Errorf("secret %q: %v", wrong, err)
			}
		}
	}
	if _, err := k.Slot(""); err == nil {
		t.Error("an empty passphrase was taken")
	}
}

// A key that only writes wraps pack keys and cannot open them.
func TestWriteOnlyKey(t *testing.T) {
	k, err := NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	k.identity = nil
	w, err := Unmarshal(k.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := w.WrapPackKey(RandomKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.UnwrapPackKey(wrapped); !errors.Is(err, ErrNoContentKey) {
		t.Errorf("got %v", err)
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

func FuzzOpenSlot(f *testing.F) {
	k, err := NewKeyring()
	if err != nil {
		f.Fatal(err)
	}
	secret, err := NewRecoveryKey()
	if err != nil {
		f.Fatal(err)
	}
	slot, err := k.Slot(secret)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slot)
	f.Add([]byte("age-encryption.org/v1\n-> scrypt AAAA 60\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := OpenSlot(b, secret); err == nil && got.ChunkID != k.ChunkID {
			t.Error("a forged slot opened")
		}
	})
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
