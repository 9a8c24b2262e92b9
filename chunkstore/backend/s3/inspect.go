package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"cairn/chunkstore/backend/engine"
)

// inspectTime bounds Inspect, beside its caller.
const inspectTime = 2 * time.Minute

// lockProbe is for how long the check locks an object of its own in a bucket
// that has locks and no default retention.
const lockProbe = 30 * time.Second

// Inspect implements engine.Inspector: what only S3 has.
func (b *Bucket) Inspect(ctx context.Context, dir string) []engine.Finding {
	ctx, stop := context.WithTimeout(ctx, inspectTime)
	defer stop()
	i := &inspection{Bucket: b, dir: dir}
	i.versions(ctx)
	i.overwrite(ctx)
	i.locks(ctx)
	i.suffix(ctx)
	return i.found
}

// inspection is one Inspect. Its requests are made once: what fails by the
// line is said as it is.
type inspection struct {
	*Bucket
	dir   string
	found []engine.Finding
}

func (i *inspection) add(name string, s engine.State, format string, args ...any) {
	i.found = append(i.found, engine.Finding{Name: name, State: s, Text: fmt.Sprintf(format, args...)})
}

// versions looks whether the bucket keeps versions, and whether create-only
// holds in it: an engine that ignores it there makes versions of the losers.
func (i *inspection) versions(ctx context.Context) {
	c, err := i.core.GetBucketVersioning(ctx, i.spec.Bucket)
	switch {
	case err != nil:
		i.add("versions", engine.Note, "cannot be asked for (%v)", i.explain(err))
		return
	case c.Suspended():
		i.add("versions", engine.Bad, "are suspended: engines keep create-only worst in that state; enable them, or make a new bucket")
		return
	case !c.Enabled():
		i.add("versions", engine.Note, "the bucket keeps none: what is deleted or overwritten is gone")
		return
	}
	seen := map[string]int{}
	for o := range i.core.ListObjectsIter(ctx, i.spec.Bucket, minio.ListObjectsOptions{Prefix: i.key(i.dir + "race-"), Recursive: true, WithVersions: true}) {
		if o.Err != nil {
			i.add("versions", engine.Note, "the bucket keeps them; they cannot be listed with these credentials (%v)", i.explain(o.Err))
			return
		}
		if !o.IsDeleteMarker {
			seen[o.Key]++
		}
	}
	for key, n := range seen {
		if n > 1 {
			i.add(engine.CreateOnly, engine.Bad, "%s has %d versions: create-only is ignored in this versioned bucket (a new one without versions and object lock may pass)", key, n)
			return
		}
	}
	i.add("versions", engine.Good, "the bucket keeps them, and create-only holds in it (%d objects of one version)", len(seen))
}

// overwrite puts without a condition, as a thief would.
func (i *inspection) overwrite(ctx context.Context) {
	key := i.key(i.dir + "overwrite")
	if err := i.create(ctx, i.dir+"overwrite", []byte("committed")); err != nil {
		i.add("overwrite", engine.Note, "was not tried (%v)", i.explain(err))
		return
	}
	body := []byte("stolen")
	_, err := i.core.Client.PutObject(ctx, i.spec.Bucket, key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true, DisableContentSha256: true})
	if err != nil {
		i.add("overwrite", engine.Note, "refused with these credentials (%v)", i.explain(err))
		return
	}
	i.add("overwrite", engine.Note, "allowed for who leaves the condition out: versions keep what was there; a policy may demand the condition (POLICIES.md)")
}

// locks looks whether objects are locked and whether that holds.
func (i *inspection) locks(ctx context.Context) {
	enabled, mode, validity, unit, err := i.core.GetObjectLockConfig(ctx, i.spec.Bucket)
	if a, ok := answered(err); ok && (a.Code == "ObjectLockConfigurationNotFoundError" || a.StatusCode == http.StatusNotFound) {
		i.add("object lock", engine.Note, "the bucket has none: who may delete can delete backups")
		return
	}
	if err != nil {
		i.add("object lock", engine.Note, "cannot be asked for (%v)", i.explain(err))
		return
	}
	if enabled != "Enabled" {
		i.add("object lock", engine.Note, "the bucket has none: who may delete can delete backups")
		return
	}
	o := minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true, DisableContentSha256: true}
	term := "without a default retention: objects are not locked; set one (POLICIES.md)"
	held := minio.Compliance
	byDefault := mode != nil && validity != nil && unit != nil && mode.IsValid()
	if byDefault {
		held, term = *mode, fmt.Sprintf("%s for %d %s by default", *mode, *validity, *unit)
	} else {
		o.Mode, o.RetainUntilDate = minio.Compliance, time.Now().Add(lockProbe).UTC()
	}
	body := []byte("locked")
	info, err := i.core.Client.PutObject(ctx, i.spec.Bucket, i.key(i.dir+"lock"), bytes.NewReader(body), int64(len(body)), o)
	if err != nil {
		i.add("object lock", engine.Note, "%s; was not tried (%v)", term, i.explain(err))
		return
	}
	for _, bypass := range []bool{false, true} {
		err := i.core.RemoveObject(ctx, i.spec.Bucket, i.key(i.dir+"lock"), minio.RemoveObjectOptions{VersionID: info.VersionID, GovernanceBypass: bypass})
		if err != nil {
			continue
		}
		if held == minio.Compliance || !bypass {
			i.add("object lock", engine.Bad, "%s, but a locked version was deleted (bypass %v): the engine does not keep its locks", term, bypass)
		} else {
			i.add("object lock", engine.Note, "%s: these credentials may bypass it", term)
		}
		return
	}
	if !byDefault {
		i.add("object lock", engine.Note, "is kept by the engine, but the bucket is %s", term)
		return
	}
	i.add("object lock", engine.Good, "%s, and it is kept", term)
}

// suffix reads an object's end by its length, and the engine's clock.
func (i *inspection) suffix(ctx context.Context) {
	data := make([]byte, 4321)
	_, _ = rand.Read(data) // never fails
	if err := i.create(ctx, i.dir+"suffix", data); err != nil {
		i.add("suffix range", engine.Note, "was not tried (%v)", i.explain(err))
		return
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(0, -100); err != nil {
		panic("internal error: " + err.Error())
	}
	body, _, header, err := i.core.GetObject(ctx, i.spec.Bucket, i.key(i.dir+"suffix"), o)
	if err != nil {
		i.add("suffix range", engine.Note, "refused (%v); Cairn needs none", i.explain(err))
		return
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, 1<<16))
	if err != nil || !bytes.Equal(got, data[len(data)-100:]) {
		i.add("suffix range", engine.Note, "wrong: %d bytes in place of the last 100 (%v); Cairn needs none", len(got), err)
	} else {
		i.add("suffix range", engine.Good, "the last bytes of an object are read right")
	}
	there, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		i.add("clock", engine.Note, "the engine does not say its time")
		return
	}
	i.add("clock", engine.Note, "the engine's is %s from this host's; nothing is decided by it, but past 15 minutes engines refuse all requests", time.Until(there).Round(time.Second))
}

// Clean implements engine.Cleaner: versions, and the markers that hide them,
// are removed, too.
func (b *Bucket) Clean(ctx context.Context, dir string) (left int, err error) {
	objects, err := b.everything(ctx, dir, true)
	versions := err == nil
	if err != nil { // it may not list versions, or the engine knows none
		if objects, err = b.everything(ctx, dir, false); err != nil {
			return 0, b.explain(err)
		}
	}
	for _, o := range objects {
		refused := b.core.RemoveObject(ctx, b.spec.Bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID})
		if refused != nil && !notThere(refused) {
			left++
		}
	}
	if versions {
		if objects, err = b.everything(ctx, dir, true); err == nil {
			left = len(objects)
		}
	}
	return left, nil
}

func (b *Bucket) everything(ctx context.Context, dir string, versions bool) (all []minio.ObjectInfo, err error) {
	for o := range b.core.ListObjectsIter(ctx, b.spec.Bucket, minio.ListObjectsOptions{Prefix: b.key(dir), Recursive: true, WithVersions: versions}) {
		if o.Err != nil {
			return nil, o.Err
		}
		all = append(all, o)
	}
	return all, ctx.Err()
}
