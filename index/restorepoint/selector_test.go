package restorepoint

import (
	"errors"
	"testing"
	"time"
)

func TestSelect(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	points := []Summary{
		{ID: "aaaa1111", VM: "web01", Time: at("2026-10-11T02:00:00Z")},
		{ID: "aaaa2222", VM: "web01", Time: at("2026-10-12T02:00:00Z")},
		{ID: "bbbb1111", VM: "db", Time: at("2026-10-12T03:00:00Z")},
		{ID: "dddd1111", VM: "bbbb", Time: at("2026-10-12T04:00:00Z")},
		{ID: "cccc1111", VM: "web01", Time: at("2026-10-12T14:30:05Z")},
	}
	for _, c := range []struct {
		spec, want string
		err        error
	}{
		{spec: "web01", want: "cccc1111"},
		{spec: "web01@latest", want: "cccc1111"},
		{spec: "web01@latest~2", want: "aaaa1111"},
		{spec: "web01@latest~3", err: ErrNoPoint},
		{spec: "web01@latest~x", err: ErrNoPoint},
		{spec: "web01@2026-10-12", want: "cccc1111"},
		{spec: "web01@2026-10-12T02", want: "aaaa2222"},
		{spec: "web01@2026-10-12T14:30:05Z", want: "cccc1111"},
		{spec: "web01@2025", err: ErrNoPoint},
		{spec: "web01@", err: ErrNoPoint},
		{spec: "aaaa2", want: "aaaa2222"},
		{spec: "aaaa", err: ErrAmbiguous},
		{spec: "aa", err: ErrNoPoint},
		{spec: "bbbb", want: "dddd1111"}, // a VM's name, not the other VM's ID
		{spec: "bbbb1", want: "bbbb1111"},
		{spec: "web02", err: ErrNoPoint},
		{spec: "db@bbbb1111", want: "bbbb1111"},
	} {
		got, err := Select(points, c.spec)
		if got.ID != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", c.spec, got.ID, err, c.want, c.err)
		}
	}
}
