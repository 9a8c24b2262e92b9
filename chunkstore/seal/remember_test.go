package seal

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Remembered keys come back for the secret that opened them and for no other.
func TestRememberAndRecall(t *testing.T) {
	probe, err := unix.AddKey("user", "cairn:test:probe", []byte("x"), unix.KEY_SPEC_USER_KEYRING)
	if err != nil {
		t.Skipf("this kernel gives no keyring: %v", err)
	}
	forget(t, probe)
	k, err := NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	name := "cairn:test:" + k.recipient.String()
	if _, ok := Recall(name, "secret"); ok {
		t.Error("keys that nobody remembered were recalled")
	}
	k.Remember(name, "secret")
	got, ok := Recall(name, "secret")
	if !ok || got.ChunkID != k.ChunkID || got.Structure != k.Structure {
		t.Fatal("remembered keys were not recalled")
	}
	if _, ok := Recall(name, "Secret"); ok {
		t.Error("another secret recalled the keys")
	}
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", name, 0)
	if err != nil {
		t.Fatal(err)
	}
	forget(t, id)
	if _, ok := Recall(name, "secret"); ok {
		t.Error("revoked keys were recalled")
	}
}

func forget(t *testing.T, id int) {
	t.Helper()
	if _, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_USER_KEYRING, 0, 0); err != nil {
		t.Fatal(err)
	}
}
