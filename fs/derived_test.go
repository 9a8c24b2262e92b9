package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	sysobject "cairn/guest/object"
	"cairn/index/restorepoint"
)

// derivedWorld has a point without metadata, and a way to derive it that the
// setting names.
func derivedWorld(setting string) (*world, error) {
	w, err := new(world).tell(appsRoot(), nil, nil)
	w.deadline = 3 * time.Second
	var tries atomic.Int64
	w.derive = func(ctx context.Context, m *restorepoint.Manifest, v *tree.View) (*sysobject.Document, error) {
		first := tries.Add(1) == 1
		if _, _, err := v.Resolve(ctx, "/var/lib/postgresql"); err != nil {
			return nil, err
		}
		o := cluster()
		o.Consistency = sysobject.Consistency{Level: sysobject.Crash, Reason: "found in its files"}
		d := &sysobject.Document{Version: sysobject.Version, Source: sysobject.SourceImage, Taken: m.Time, Objects: []sysobject.Object{o}}
		switch setting {
		case "fail":
			return nil, errors.New("nothing to see")
		case "invalid":
			d.Objects = append(d.Objects, sysobject.Object{Name: "../../etc"})
		case "unanswered":
			if first {
				return nil, fmt.Errorf("/etc: %w", ErrTryAgain)
			}
		case "slow":
			if first {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}
		return d, nil
	}
	w.do = func(*Server, *world, string) string { return fmt.Sprint(tries.Load()) }
	return w, err
}

func TestDerivedAppsSaySo(t *testing.T) {
	m := mountWorld(t, "derived")
	for range 2 {
		if got := names(t, m.path("web01/latest/apps")); got != "document.json postgresql@15-main" {
			t.Fatalf("apps holds %q", got)
		}
	}
	var o aboutObject
	readJSON(t, m.path("web01/latest/apps/postgresql@15-main/object.json"), &o)
	if !o.Derived || o.Source != sysobject.SourceImage {
		t.Errorf("object.json: %+v", o)
	}
	var p about
	readJSON(t, m.path("web01/latest/point.json"), &p)
	if p.Apps == nil || !p.Apps.Derived || p.Apps.Objects != 1 || len(p.Problems) != 0 {
		t.Errorf("point.json: %+v, problems %v", p.Apps, p.Problems)
	}
	if b, err := os.ReadFile(m.path("web01/latest/apps/postgresql@15-main/data/PG_VERSION")); err != nil || string(b) != "15\n" {
		t.Errorf("its data: %q, %v", b, err)
	}
	if got := m.ask(t, "tries"); got != "1" {
		t.Errorf("derived %s times, want once", got)
	}
}

func TestFailureToDeriveLeavesAppsEmpty(t *testing.T) {
	for setting, reason := range map[string]string{"fail": "nothing to see", "invalid": "not a name"} {
		m := mountWorld(t, "derived", envSetting+"="+setting)
		if got := names(t, m.path("web01/latest/apps")); got != "" {
			t.Errorf("%s: apps holds %q", setting, got)
		}
		var p about
		readJSON(t, m.path("web01/latest/point.json"), &p)
		if len(p.Problems) != 1 || p.Problems[0].Where != "apps" || !strings.Contains(p.Problems[0].Reason, reason) {
			t.Errorf("%s: problems %v", setting, p.Problems)
		}
		if got := m.ask(t, "tries"); got != "1" {
			t.Errorf("%s: tried %s times", setting, got)
		}
	}
}

// What may work at the next try is tried again, and never takes longer than a
// request may.
func TestDerivingIsTriedAgain(t *testing.T) {
	for _, setting := range []string{"unanswered", "slow"} {
		m := mountWorld(t, "derived", envSetting+"="+setting)
		started := time.Now()
		if _, err := os.ReadDir(m.path("web01/latest/apps")); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: the first look: %v, want EIO", setting, err)
		}
		if took := time.Since(started); took > 3*time.Second {
			t.Errorf("%s: it took %v", setting, took)
		}
		if got := names(t, m.path("web01/latest/apps")); got != "document.json postgresql@15-main" {
			t.Errorf("%s: the second look: %q", setting, got)
		}
		late := mountWorld(t, "derived", envSetting+"="+setting)
		var p about
		readJSON(t, late.path("web01/latest/point.json"), &p)
		if len(p.Problems) != 1 || p.Problems[0].Where != "apps" || !strings.Contains(p.Problems[0].Reason, "yet") {
			t.Errorf("%s: problems %v", setting, p.Problems)
		}
	}
}
