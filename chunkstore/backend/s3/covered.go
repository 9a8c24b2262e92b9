package s3

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/engine"
)

// Covered is an object of which something newer hides or replaces the version
// that was created first. Cairn creates an object once and never writes it again:
// the oldest version is the true one. A marker is gc's work, or a thief's; a
// newer version is nobody's but a thief's.
type Covered struct {
	Name    string
	Since   time.Time // when the oldest cover was made, by the engine's clock
	Markers int       // that say that it is deleted
	Newer   int       // versions over it

	covers []minio.ObjectInfo // newest first
	first  minio.ObjectInfo
}

// Covered calls fn for each object that is covered, in the order of their names.
// It holds all versions in memory: some engines list markers apart.
func (b *Bucket) Covered(ctx context.Context, fn func(Covered) error) error {
	all, err := b.everything(ctx, "", true)
	if err != nil {
		return fmt.Errorf("%s: list versions: %w", b.spec, b.explain(err))
	}
	slices.SortStableFunc(all, func(x, y minio.ObjectInfo) int { // of one key the newest first
		latest := func(o minio.ObjectInfo) int {
			if o.IsLatest {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(x.Key, y.Key), cmp.Compare(latest(x), latest(y)), y.LastModified.Compare(x.LastModified))
	})
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].Key == all[0].Key {
			n++
		}
		if c, ok := b.covered(all[:n]); ok {
			if err := fn(c); err != nil {
				return err
			}
		}
		all = all[n:]
	}
	return nil
}

// covered looks at all versions of one key.
func (b *Bucket) covered(versions []minio.ObjectInfo) (c Covered, ok bool) {
	first := len(versions) - 1
	for first >= 0 && versions[first].IsDeleteMarker { // of something that is gone for good
		first--
	}
	if first < 1 {
		return c, false
	}
	c.Name, ok = strings.CutPrefix(versions[first].Key, b.key(""))
	if !ok || backend.CheckName(c.Name) != nil || strings.HasPrefix(c.Name, engine.Prefix) { // checks overwrite, to see
		return c, false
	}
	if now, was := versions[0], versions[first]; !now.IsDeleteMarker && now.Size == was.Size && now.ETag == was.ETag {
		return c, false // Uncover has put it there again
	}
	c.covers, c.first = versions[:first], versions[first]
	c.Since = c.covers[first-1].LastModified
	for _, o := range c.covers {
		if o.IsDeleteMarker {
			c.Markers++
		} else {
			c.Newer++
		}
	}
	return c, true
}

// maxObject bounds what is put again, in bytes: a pack is smaller.
const maxObject = 256 << 20

// Uncover removes what covers an object, the newest first. In a bucket with a
// default retention a thief's version is locked as any other: then the true
// bytes are put over it once more.
func (b *Bucket) Uncover(ctx context.Context, c Covered) error {
	return b.try(ctx, b.patience, "uncover "+c.Name, int(min(c.first.Size, maxObject)), func(ctx context.Context) error {
		kept := 0
		for _, o := range c.covers {
			err := b.core.RemoveObject(ctx, b.spec.Bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID})
			if err == nil || notThere(err) {
				continue
			}
			if o.IsDeleteMarker { // markers are never locked
				return err
			}
			kept++
		}
		if kept == 0 {
			return nil
		}
		return b.putAgain(ctx, c.first)
	})
}

// putAgain makes an old version the newest one.
func (b *Bucket) putAgain(ctx context.Context, o minio.ObjectInfo) error {
	if o.Size > maxObject {
		return fmt.Errorf("%d bytes are more than any object of Cairn has: %w", o.Size, errRange)
	}
	body, info, _, err := b.core.GetObject(ctx, b.spec.Bucket, o.Key, minio.GetObjectOptions{VersionID: o.VersionID})
	if err != nil {
		return err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, o.Size+1))
	if err != nil || int64(len(data)) != o.Size || info.Size != o.Size {
		return fmt.Errorf("%w: %d of %d bytes", errCut, len(data), o.Size)
	}
	ctx, stop := context.WithCancel(ctx)
	ctx, wait := withBodies(ctx)
	_, err = b.core.Client.PutObject(ctx, b.spec.Bucket, o.Key, bytes.NewReader(data), o.Size, minio.PutObjectOptions{DisableMultipart: true, DisableContentSha256: true, SendContentMd5: true})
	stop()
	wait()
	return err
}
