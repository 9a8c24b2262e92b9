package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/backendtest"
)

func TestContract(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		d, err := Create(filepath.Join(t.TempDir(), "new", "place"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	})
}

// Reading more objects than files may be open still works.
func TestManyOpenFiles(t *testing.T) {
	d, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for round := range 2 {
		for i := range maxOpen + 40 {
			name := fmt.Sprintf("packs/s/%d", i)
			if round == 0 {
				if err := d.Put(ctx, name, []byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
			}
			var p [1]byte
			if err := d.ReadAt(ctx, name, p[:], 0); err != nil || p[0] != byte(i) {
				t.Fatalf("%s: %v, %v", name, p, err)
			}
		}
	}
	if len(d.open) > maxOpen {
		t.Errorf("%d files are open", len(d.open))
	}
}

// A dead writer's temporary file is no object, and Sweep removes it alone.
func TestSweep(t *testing.T) {
	d, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := d.Put(ctx, "packs/s/x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(d.root, "packs/s", tmpPrefix+"0102")
	if err := os.WriteFile(tmp, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := d.List(ctx, "", func(backend.Object) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("listed %d objects, %v", n, err)
	}
	if removed, err := d.Sweep(time.Now(), time.Hour); removed != 0 || err != nil {
		t.Errorf("swept %d of a writer at work, %v", removed, err)
	}
	if removed, err := d.Sweep(time.Now().Add(2*time.Hour), time.Hour); removed != 1 || err != nil {
		t.Errorf("swept %d, %v", removed, err)
	}
	if _, err := d.Size(ctx, "packs/s/x"); err != nil {
		t.Error(err)
	}
}
