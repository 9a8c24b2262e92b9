package chunk

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/zeebo/blake3"
)

// The ID is fixed by the format: first 16 bytes of keyed BLAKE3.
func TestSumIsKeyedBLAKE3(t *testing.T) {
	key := [32]byte{1, 2, 3}
	p := bytes.Repeat([]byte("cairn\n"), 1000)[:Size]
	k, err := blake3.NewKeyed(key[:])
	if err != nil {
		t.Fatal(err)
	}
	_, _ = k.Write(p)
	want := hex.EncodeToString(k.Sum(nil)[:IDSize])
	h := NewHasher(key)
	for range 2 { // a Hasher is used again and again
		if got := h.Sum(p).String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if NewHasher([32]byte{9}).Sum(p) == h.Sum(p) {
		t.Error("two keys gave one ID")
	}
}

func TestIsZero(t *testing.T) {
	p := make([]byte, Size)
	if !IsZero(p) || !IsZero(p[:17]) {
		t.Error("zeros not seen as zero")
	}
	p[Size-1] = 1
	if IsZero(p) {
		t.Error("a last byte of 1 seen as zero")
	}
}

func BenchmarkSum(b *testing.B) {
	h, p := NewHasher([32]byte{}), make([]byte, Size)
	b.SetBytes(Size)
	for b.Loop() {
		h.Sum(p)
	}
}
