package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/chunkstore/backend"
)

// Run tests the place that open gives; each call must give an empty one.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	t.Run("PutAndRead", func(t *testing.T) { testPutAndRead(t, open(t)) })
	t.Run("CreateOnly", func(t *testing.T) { testCreateOnly(t, open(t)) })
	t.Run("List", func(t *testing.T) { testList(t, open(t)) })
	t.Run("Delete", func(t *testing.T) { testDelete(t, open(t)) })
	t.Run("Names", func(t *testing.T) { testNames(t, open(t)) })
}

func testPutAndRead(t *testing.T, b backend.Backend) {
	ctx := context.Background()
	data := bytes.Repeat([]byte("0123456789"), 1000)
	if err := b.Put(ctx, "packs/s/one", data); err != nil {
		t.Fatal(err)
	}
	got, err := backend.Get(ctx, b, "packs/s/one", 1<<20)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read back: %d bytes, %v", len(got), err)
	}
	if _, err := backend.Get(ctx, b, "packs/s/one", 9999); err == nil {
		t.Error("an object over the limit was read")
	}
	p := make([]byte, 10)
	if err := b.ReadAt(ctx, "packs/s/one", p, 5); err != nil || string(p) != "5678901234" {
		t.Errorf("range: %q, %v", p, err)
	}
	if err := b.ReadAt(ctx, "packs/s/one", p, 9995); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("range over the end: %v", err)
	}
	if err := b.ReadAt(ctx, "packs/s/none", p, 0); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("read of nothing: %v", err)
	}
	if _, err := b.Size(ctx, "packs/s/none"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("size of nothing: %v", err)
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Put(stopped, "packs/s/late", data); !errors.Is(err, context.Canceled) {
		t.Errorf("put after cancel: %v", err)
	}
}

// Of many creators of one name exactly one wins, and its bytes stay.
func testCreateOnly(t *testing.T, b backend.Backend) {
	ctx := context.Background()
	for round := range 10 {
		name := fmt.Sprintf("points/%d", round)
		var won atomic.Int64
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				body := fmt.Sprint("writer ", i)
				switch err := b.Put(ctx, name, []byte(body)); {
				case err == nil:
					won.Add(1)
					winner.Store(body)
				case !errors.Is(err, backend.ErrExist):
					t.Errorf("loser's error: %v", err)
				}
			})
		}
		wg.Wait()
		got, err := backend.Get(ctx, b, name, 100)
		if won.Load() != 1 || err != nil || string(got) != winner.Load() {
			t.Fatalf("%d winners, stored %q (%v), winner wrote %q", won.Load(), got, err, winner.Load())
		}
	}
}

func testList(t *testing.T, b backend.Backend) {
	ctx := context.Background()
	for _, n := range []string{"points/b", "points/a", "pointsx/c", "packs/s2/x", "packs/s1/y"} {
		if err := b.Put(ctx, n, []byte(n)); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string][]string{
		"points/": {"points/a", "points/b"},
		"packs/":  {"packs/s1/y", "packs/s2/x"},
		"none/":   nil,
		"":        {"packs/s1/y", "packs/s2/x", "points/a", "points/b", "pointsx/c"},
	} {
		var got []string
		err := b.List(ctx, prefix, func(o backend.Object) error {
			if o.Size != int64(len(o.Name)) {
				t.Errorf("%s: size %d", o.Name, o.Size)
			}
			if o.Modified.IsZero() {
				t.Errorf("%s: no time", o.Name)
			}
			got = append(got, o.Name)
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("list %q: got %v, %v; want %v", prefix, got, err, want)
		}
	}
	stop := errors.New("stop")
	if err := b.List(ctx, "", func(backend.Object) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's error was not given back: %v", err)
	}
}

func testDelete(t *testing.T, b backend.Backend) {
	ctx := context.Background()
	if err := b.Put(ctx, "packs/s/x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	if err := b.ReadAt(ctx, "packs/s/x", p, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Delete(ctx, "packs/s/x"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if err := b.ReadAt(ctx, "packs/s/x", p, 0); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("read after delete: %v", err)
	}
}

func testNames(t *testing.T, b backend.Backend) {
	for _, n := range []string{"", "/x", "x/", "a//b", "../x", "a/../b", ".tmp-1", "a/.b", "A", "a b", "a\x00"} {
		if err := b.Put(context.Background(), n, nil); err == nil {
			t.Errorf("name %q was taken", n)
		}
	}
}
