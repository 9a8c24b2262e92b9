package s3

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/lifecycle"

	"cairn/chunkstore/backend/engine"
	"cairn/integration/lab/objectstore"
)

//go:embed policies/host.json
var hostPolicy string

//go:embed policies/gc.json
var gcPolicy string

// asUser opens a place with credentials that a policy of POLICIES.md limits: on
// MinIO those of a role for an hour, on versitygw and Ceph a user whom the
// bucket's policy names.
func asUser(t *testing.T, s *objectstore.Server, root *Bucket, user, policy string) *Bucket {
	t.Helper()
	ctx := context.Background()
	policy = strings.ReplaceAll(policy, "BUCKET", root.spec.Bucket)
	var creds *credentials.Credentials
	if s.Engine == "minio" {
		var err error
		creds, err = credentials.NewSTSAssumeRole("http://"+s.Address, credentials.STSAssumeRoleOptions{AccessKey: s.AccessKey, SecretKey: s.SecretKey, Policy: policy, DurationSeconds: 3600})
		if err != nil {
			t.Fatal(err)
		}
	} else {
		const secret = "users-secret-5tGb8Kq"
		s.AddUser(t, user, secret)
		creds = credentials.NewStaticV4(user, secret, "")
		if err := root.core.SetBucketPolicy(ctx, root.spec.Bucket, withPrincipal(s, policy, root.spec.Bucket, user)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := Open(ctx, root.spec, Options{Credentials: creds, Getenv: func(string) string { return "" }, Patience: hasty})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// TestAttacker: whoever has a backup host's credentials (policies/host.json)
// over a bucket with object lock can store a point, and then tries to destroy
// it. Every try is refused, or (overwriting, which makes a new version) leaves
// the committed version, which is then read back, byte for byte.
func TestAttacker(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		ctx := context.Background()
		root := openLocked(t, s, true)
		initBucket(t, root)
		thief := asUser(t, s, root, "host", hostPolicy)
		host := newHypervisor(t, thief)
		img := guestImage(5, 2, 2)
		where, _, err := host.save(ctx, img)
		if err != nil {
			t.Fatalf("with a host's rights: %v", err)
		}
		host.holds(t, where, img)
		v, err := engine.Check(ctx, thief, time.Now())
		if err != nil || v.Good() == ignoresConditions(s, true) || v.Left == 0 {
			t.Errorf("engine check with a host's rights: %+v, %v", v, err)
		}

		committed, err := root.everything(ctx, "", true)
		if err != nil {
			t.Fatal(err)
		}
		c, name := thief.core, thief.spec.Bucket
		refused := func(what string, err error) {
			t.Helper()
			if err == nil {
				t.Errorf("the thief could %s", what)
			}
		}
		contents := map[string]string{}
		for _, o := range committed {
			key := o.Key + "?" + o.VersionID
			contents[key] = versionBytes(t, root, o)
			refused("delete "+key, c.RemoveObject(ctx, name, o.Key, minio.RemoveObjectOptions{}))
			refused("delete the version "+key, c.RemoveObject(ctx, name, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID}))
			refused("bypass the lock of "+key, c.RemoveObject(ctx, name, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID, GovernanceBypass: true}))
		}
		first := committed[0]
		soon, governance := time.Now().Add(time.Second), minio.Governance
		refused("shorten a lock", c.PutObjectRetention(ctx, name, first.Key, minio.PutObjectRetentionOptions{VersionID: first.VersionID, Mode: &governance, RetainUntilDate: &soon, GovernanceBypass: true}))
		for r := range c.RemoveObjects(ctx, name, objectsOf(committed), minio.RemoveObjectsOptions{GovernanceBypass: true}) {
			refused("delete many at once", r.Err)
		}
		refused("suspend versions", c.SuspendVersioning(ctx, name))
		days, unit := uint(1), minio.Days
		refused("change the bucket's lock", c.SetBucketObjectLockConfig(ctx, name, &governance, &days, &unit))
		refused("open the bucket", c.SetBucketPolicy(ctx, name, ""))
		rules := lifecycle.NewConfiguration()
		rules.Rules = []lifecycle.Rule{{ID: "x", Status: "Enabled", Expiration: lifecycle.Expiration{Days: 1}}}
		refused("let objects expire", c.SetBucketLifecycle(ctx, name, rules))
		refused("remove the bucket", c.RemoveBucketWithOptions(ctx, name, minio.RemoveBucketOptions{ForceDelete: true}))

		for _, name := range []string{"gc/00000001/condemned", "gc/00000001/final", "drops/" + strings.Repeat("0", 32), "forwards/" + strings.Repeat("0", 32) + "/x/y"} {
			refused("let others delete, by "+name, thief.Put(ctx, name, []byte("forged")))
		}

		evil := []byte("overwritten")
		overwritten := 0
		for _, o := range committed {
			if overwritten == 3 || strings.Contains(o.Key, engine.Prefix) {
				continue
			}
			if _, err := c.Client.PutObject(ctx, name, o.Key, bytes.NewReader(evil), int64(len(evil)), minio.PutObjectOptions{SendContentMd5: true, DisableContentSha256: true, DisableMultipart: true}); err == nil {
				overwritten++
			}
		}
		t.Logf("%d objects and versions attacked; %d of 3 overwritten with a newer version", len(committed), overwritten)

		left, err := root.everything(ctx, "", true)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range left {
			key := o.Key + "?" + o.VersionID
			if want, ok := contents[key]; ok && versionBytes(t, root, o) != want {
				t.Errorf("%s was changed", key)
			}
			delete(contents, key)
		}
		for key := range contents {
			t.Errorf("%s is gone", key)
		}
		uncoverAll(t, s, root, committed, overwritten)
		newHypervisor(t, thief).holds(t, where, img)
	})
}

// uncoverAll hides all objects behind markers, too, and undoes everything with
// the gc host's rights, twice: the second time there is nothing to do.
func uncoverAll(t *testing.T, s *objectstore.Server, root *Bucket, committed []minio.ObjectInfo, overwritten int) {
	t.Helper()
	ctx := context.Background()
	hidden := map[string]bool{}
	for _, o := range committed {
		if hidden[o.Key] || o.IsDeleteMarker || strings.Contains(o.Key, engine.Prefix) {
			continue
		}
		hidden[o.Key] = true
		if err := root.core.RemoveObject(ctx, root.spec.Bucket, o.Key, minio.RemoveObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	gc := asUser(t, s, root, "gc", gcPolicy)
	for round := range 2 {
		var found []Covered
		newer := 0
		err := gc.Covered(ctx, func(c Covered) error {
			if found = append(found, c); c.Newer > 0 {
				newer++
			}
			return nil
		})
		if err != nil || round == 0 && (len(found) != len(hidden) || newer != overwritten) || round == 1 && len(found) != 0 {
			t.Errorf("round %d: %d objects are covered, %d by versions, %v; want %d and %d at first", round, len(found), newer, err, len(hidden), overwritten)
		}
		for _, c := range found {
			if time.Since(c.Since).Abs() > time.Hour {
				t.Errorf("%s is covered since %s", c.Name, c.Since)
			}
			if err := gc.Uncover(ctx, c); err != nil {
				t.Error(err)
			}
		}
	}
	// On versitygw and Ceph a bucket has one policy: the thief's was replaced.
	if s.Engine != "minio" {
		if err := root.core.SetBucketPolicy(ctx, root.spec.Bucket, withPrincipal(s, hostPolicy, root.spec.Bucket, "host")); err != nil {
			t.Fatal(err)
		}
	}
}

func withPrincipal(s *objectstore.Server, policy, bucket, user string) string {
	owner := ""
	if s.Engine == "ceph" {
		// There an object is its creator's: the bucket's owner reads it by the
		// policy only.
		user = "arn:aws:iam:::user/" + user
		owner = `{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam:::user/root"]},"Action":"s3:*","Resource":["arn:aws:s3:::BUCKET","arn:aws:s3:::BUCKET/*"]},`
	}
	policy = strings.ReplaceAll(policy, `"Effect": "Allow",`, `"Effect": "Allow", "Principal": {"AWS": ["`+user+`"]},`)
	policy = strings.Replace(policy, `"Statement": [`, `"Statement": [`+owner, 1)
	return strings.ReplaceAll(policy, "BUCKET", bucket)
}

func objectsOf(list []minio.ObjectInfo) <-chan minio.ObjectInfo {
	ch := make(chan minio.ObjectInfo, len(list))
	for _, o := range list {
		ch <- o
	}
	close(ch)
	return ch
}

func versionBytes(t *testing.T, b *Bucket, o minio.ObjectInfo) string {
	t.Helper()
	body, _, _, err := b.core.GetObject(context.Background(), b.spec.Bucket, o.Key, minio.GetObjectOptions{VersionID: o.VersionID})
	if err != nil {
		t.Fatalf("%s?%s: %v", o.Key, o.VersionID, err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestCollectorRights: the gc host's rights (policies/gc.json) are enough to
// delete, and in a bucket with locks what it deletes is only hidden.
func TestCollectorRights(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		ctx := context.Background()
		for _, locked := range []bool{false, true} {
			root := openNew(t, s, s.Address)
			if locked {
				root = openLocked(t, s, true)
			}
			gc := asUser(t, s, root, fmt.Sprintf("gc-%v", locked), gcPolicy)
			if err := gc.Put(ctx, "packs/s/x", []byte("dead")); err != nil {
				t.Fatal(err)
			}
			if err := gc.Delete(ctx, "packs/s/x"); err != nil {
				t.Errorf("locked %v: gc may not delete: %v", locked, err)
			}
			all, err := root.everything(ctx, "packs/", true)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(all); locked && n != 2 || !locked && n != 0 {
				t.Errorf("locked %v: %d versions and markers are left", locked, n)
			}
			for _, o := range all {
				if o.IsDeleteMarker {
					if err := gc.core.RemoveObject(ctx, gc.spec.Bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID}); err != nil {
						t.Errorf("remove the marker: %v", err)
					}
				}
			}
			if n, err := gc.Size(ctx, "packs/s/x"); locked && (err != nil || n != 4) {
				t.Errorf("what was only hidden is back as %d bytes, %v", n, err)
			}
		}
	})
}

// TestPoliciesAreDocumented: POLICIES.md names the files that are tested here.
func TestPoliciesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("POLICIES.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"policies/host.json", "policies/gc.json"} {
		if !strings.Contains(string(text), f) {
			t.Errorf("POLICIES.md does not name %s", f)
		}
	}
}
