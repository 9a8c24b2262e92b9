package s3

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"cairn/chunkstore/backend/engine"
	"cairn/integration/lab/objectstore"
)

// TestCheckEngines: the engines of the lab are good, in a plain bucket, in one
// with versions, and in one with locks, but for Ceph's, which ignores create-only
// where there are versions: that, and nothing else, is found bad. Nothing is left
// but what is locked.
func TestCheckEngines(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		for _, kind := range []string{"plain", "versions", "locks", "default lock"} {
			ctx := context.Background()
			b := openNew(t, s, s.Address)
			switch kind {
			case "versions":
				if err := b.core.EnableVersioning(ctx, b.spec.Bucket); err != nil {
					t.Fatal(err)
				}
			case "locks", "default lock":
				b = openLocked(t, s, kind == "default lock")
			}
			v, err := engine.Check(ctx, b, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings {
				t.Logf("%s: %s %s: %s", kind, f.State, f.Name, f.Text)
			}
			locked := kind == "locks" || kind == "default lock"
			ignores := ignoresConditions(s, kind != "plain")
			if v.Good() == ignores || (v.State(engine.CreateOnly) != engine.Good) != ignores || (v.Left > 0) != locked {
				t.Errorf("%s: %d objects are left, bad: %s", kind, v.Left, v.Reasons())
			}
			for _, f := range v.Findings {
				if f.State == engine.Bad && f.Name != engine.CreateOnly {
					t.Errorf("%s: %s was found bad: %s", kind, f.Name, f.Text)
				}
			}
			if ignores && !strings.Contains(v.Reasons(), "create-only is ignored in this versioned bucket (a new one without versions") {
				t.Errorf("%s: what is bad is not named: %s", kind, v.Reasons())
			}
			if kind == "default lock" && v.State("object lock") != engine.Good {
				t.Errorf("the default lock was found %s", v.State("object lock"))
			}
			if all, err := b.everything(ctx, "", true); err != nil || len(all) != v.Left {
				t.Errorf("%s: %d objects and versions are in the bucket, the verdict says %d; %v", kind, len(all), v.Left, err)
			}
			if err := engine.Store(ctx, b, "", v); err != nil {
				t.Error(err)
			}
			if last, err := engine.Last(ctx, b, ""); err != nil || last.Left != v.Left {
				t.Errorf("%+v, %v", last, err)
			}
		}
	})
}

// openLocked makes a bucket with object lock, COMPLIANCE for a day if retain.
func openLocked(t *testing.T, s *objectstore.Server, retain bool) *Bucket {
	t.Helper()
	ctx := context.Background()
	root := openNew(t, s, s.Address)
	name := bucketName()
	if err := root.core.MakeBucket(ctx, name, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		t.Fatal(err)
	}
	if retain {
		mode, days, unit := minio.Compliance, uint(1), minio.Days
		if err := root.core.SetBucketObjectLockConfig(ctx, name, &mode, &days, &unit); err != nil {
			t.Fatal(err)
		}
	}
	return openAt(t, s, Spec{Host: s.Address, Bucket: name, Prefix: "p"}, hasty)
}
