package registry

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"cairn/guest/filesystem"
)

func hive(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/SYSTEM")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func values(b []byte, path ...string) ([]Value, error) {
	h, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return h.Values(path...)
}

// TestMountedDevices reads what hivexsh wrote: testdata/make.sh.
func TestMountedDevices(t *testing.T) {
	list, err := values(hive(t), "MountedDevices")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range list {
		got = append(got, fmt.Sprintf("%s %d %x", v.Name, v.Type, v.Data))
	}
	const id = "444d494f3a49443a0403020106050807090a0b0c0d0e0f10"
	want := []string{
		`\DosDevices\C: 3 efbeadde0000100000000000`, `\DosDevices\D: 3 ` + id,
		`\DosDevices\E: 3 5c003f003f005c004900440045002300430064005200` + `6f006d000000`,
		`\??\Volume{11111111-2222-3333-4444-555555555555} 3 ` + id, `small 4 07000000`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestNoSuchKey(t *testing.T) {
	if list, err := values(hive(t), "Select"); err != nil || len(list) > 0 {
		t.Errorf("an empty key: %v, %v", list, err)
	}
	for _, path := range [][]string{{"Nothing"}, {"Select", "Nothing"}} {
		if _, err := values(hive(t), path...); !errors.Is(err, filesystem.ErrNotExist) {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 8192), hive(t)[:base]} {
		if _, err := values(b, "x"); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

// TestDamaged changes bytes of the hive: the answer comes, right or wrong, and an
// error says that the hive is damaged or has no such key.
func TestDamaged(t *testing.T) {
	clean := hive(t)
	for round := range 20_000 {
		random := rand.New(rand.NewPCG(uint64(round), 1))
		b := slices.Clone(clean)
		for range 1 + random.IntN(4) {
			b[base+random.IntN(2048)] = byte(random.IntN(256))
		}
		if _, err := values(b, "MountedDevices"); err != nil && !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrNotExist) {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

func FuzzHive(f *testing.F) {
	f.Add(hive(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := values(b, "MountedDevices")
		if err != nil && !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrNotExist) {
			t.Fatal(err)
		}
		for _, v := range list {
			if len(v.Data) > maxData {
				t.Fatalf("%d bytes", len(v.Data))
			}
		}
	})
}
