package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"cairn/chunkstore/backend"
)

// key gives an object's key in the bucket; for "" or a prefix that of all
// below it.
func (b *Bucket) key(name string) string {
	if b.spec.Prefix == "" {
		return name
	}
	return b.spec.Prefix + "/" + name
}

// answered gives an engine's answer, if the error is one.
func answered(err error) (minio.ErrorResponse, bool) {
	var a minio.ErrorResponse
	ok := errors.As(err, &a)
	return a, ok
}

// notThere tells that an object, and not its bucket, is missing.
func notThere(err error) bool {
	a, ok := answered(err)
	return ok && a.StatusCode == http.StatusNotFound && a.Code != "NoSuchBucket"
}

// Put implements backend.Backend.
func (b *Bucket) Put(ctx context.Context, name string, data []byte) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.try(ctx, b.patience, "put "+name, len(data), func(ctx context.Context) error {
		err := b.create(ctx, name, data)
		a, ok := answered(err)
		if !ok || a.StatusCode != http.StatusPreconditionFailed {
			return err // of a lost answer the next try hears
		}
		switch same, err := b.holds(ctx, name, data); {
		case errors.Is(err, backend.ErrNotExist):
			return fmt.Errorf("%s: %w", name, errHidden)
		case err != nil:
			return err
		case same: // ours, and its answer was lost
			return nil
		}
		return fmt.Errorf("%s: %w", name, backend.ErrExist)
	})
}

// create is one PUT of an object that must not exist.
func (b *Bucket) create(ctx context.Context, name string, data []byte) error {
	o := minio.PutObjectOptions{DisableMultipart: true, DisableContentSha256: true, SendContentMd5: true}
	o.SetMatchETagExcept("*")
	ctx, stop := context.WithCancel(ctx)
	ctx, wait := withBodies(ctx)
	_, err := b.core.Client.PutObject(ctx, b.spec.Bucket, b.key(name), bytes.NewReader(data), int64(len(data)), o)
	stop()
	wait()
	return err
}

// holds says whether an object's bytes are these.
func (b *Bucket) holds(ctx context.Context, name string, data []byte) (bool, error) {
	n, err := b.size(ctx, name)
	if err != nil || n != int64(len(data)) {
		return false, err
	}
	piece := make([]byte, min(len(data), 1<<20))
	for off := 0; off < len(data); off += len(piece) {
		piece = piece[:min(len(piece), len(data)-off)]
		if err := b.read(ctx, name, piece, int64(off)); err != nil {
			return false, err
		}
		if !bytes.Equal(piece, data[off:off+len(piece)]) {
			return false, nil
		}
	}
	return true, nil
}

// Get implements backend.Getter: manifests and keys are read at each start, and
// a request over a line is long.
func (b *Bucket) Get(ctx context.Context, name string, limit int64) (data []byte, err error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	var large error
	err = b.try(ctx, b.patience, "read "+name, int(min(limit, 4*slowest)), func(ctx context.Context) error {
		body, info, _, err := b.core.GetObject(ctx, b.spec.Bucket, b.key(name), minio.GetObjectOptions{})
		if notThere(err) {
			return fmt.Errorf("%s: %w", name, backend.ErrNotExist)
		}
		if err != nil {
			return err
		}
		defer body.Close()
		if info.Size > limit || info.Size < 0 {
			large = backend.TooLarge(name, info.Size, limit)
			return nil
		}
		data = make([]byte, info.Size)
		if n, err := io.ReadFull(body, data); err != nil {
			return fmt.Errorf("%w after %d of %d bytes", errCut, n, len(data))
		}
		return nil
	})
	return data, errors.Join(err, large)
}

// ReadAt implements backend.Backend.
func (b *Bucket) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("internal error: %s is read from byte %d on", name, off)
	}
	return b.try(ctx, b.patience, "read "+name, len(p), func(ctx context.Context) error {
		if len(p) > 0 {
			return b.read(ctx, name, p, off)
		}
		switch n, err := b.size(ctx, name); {
		case err != nil:
			return err
		case off > n:
			return shortError{name}
		}
		return nil
	})
}

// read is one GET of a range.
func (b *Bucket) read(ctx context.Context, name string, p []byte, off int64) error {
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+int64(len(p))-1); err != nil {
		return err
	}
	body, info, header, err := b.core.GetObject(ctx, b.spec.Bucket, b.key(name), o)
	if notThere(err) {
		return fmt.Errorf("%s: %w", name, backend.ErrNotExist)
	}
	if a, ok := answered(err); ok && a.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return shortError{name}
	}
	if err != nil {
		return err
	}
	defer body.Close()
	var first, last int64
	if _, err := fmt.Sscanf(header.Get("Content-Range"), "bytes %d-%d/", &first, &last); err != nil || first != off {
		return fmt.Errorf("%s: %w", name, errRange)
	}
	if info.Size < int64(len(p)) || last-first+1 < int64(len(p)) {
		return shortError{name}
	}
	if info.Size > int64(len(p)) {
		return fmt.Errorf("%s: %w", name, errRange)
	}
	n, err := io.ReadFull(body, p)
	if err != nil {
		return fmt.Errorf("%w after %d of %d bytes", errCut, n, len(p)) // not %w err: that would say that the object ends
	}
	return nil
}

// Size implements backend.Backend.
func (b *Bucket) Size(ctx context.Context, name string) (n int64, err error) {
	if err := backend.CheckName(name); err != nil {
		return 0, err
	}
	err = b.try(ctx, b.patience, "look at "+name, 0, func(ctx context.Context) error {
		n, err = b.size(ctx, name)
		return err
	})
	return n, err
}

func (b *Bucket) size(ctx context.Context, name string) (int64, error) {
	info, err := b.core.StatObject(ctx, b.spec.Bucket, b.key(name), minio.StatObjectOptions{})
	if notThere(err) {
		return 0, fmt.Errorf("%s: %w", name, backend.ErrNotExist)
	}
	return info.Size, err
}

// maxPage is how many objects one request lists; engines give no more.
const maxPage = 1000

// List implements backend.Backend.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	if prefix != "" {
		if err := backend.CheckName(strings.TrimSuffix(prefix, "/")); err != nil {
			return err
		}
	}
	for after, more := "", true; more; {
		var page []minio.ObjectInfo
		err := b.try(ctx, b.patience, "list "+prefix, slowest, func(ctx context.Context) (err error) {
			page, more, err = b.page(ctx, b.key(prefix), after, b.pageSize)
			return err
		})
		if err != nil {
			return err
		}
		for _, o := range page {
			if o.Key <= after {
				return fmt.Errorf("%s: list %s: the engine gives %q again, or out of order: it cannot hold a repository", b.spec, prefix, clean(o.Key))
			}
			after = o.Key
			name, ok := strings.CutPrefix(o.Key, b.key(""))
			if !ok || !isObject(name) {
				continue
			}
			if err := fn(backend.Object{Name: name, Size: o.Size, Modified: o.LastModified}); err != nil {
				return err
			}
		}
	}
	return nil
}

// isObject tells objects from markers of folders, and from names that no place
// lists.
func isObject(name string) bool {
	return name != "" && !strings.HasSuffix(name, "/") && name[0] != '.' && !strings.Contains(name, "/.")
}

// page lists at most n objects behind a key, in their order, and says whether
// there may be more.
func (b *Bucket) page(ctx context.Context, prefix, after string, n int) (page []minio.ObjectInfo, more bool, err error) {
	owner := false
	o := minio.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true, MaxKeys: n, FetchOwner: &owner}
	for info := range b.core.ListObjectsIter(ctx, b.spec.Bucket, o) {
		if info.Err != nil {
			return nil, false, info.Err
		}
		if page = append(page, info); len(page) == n {
			return page, true, nil
		}
	}
	return page, false, ctx.Err()
}

// Delete implements backend.Backend. In a bucket with versions it hides the
// object: what removes old versions is a rule of the bucket's (POLICIES.md).
func (b *Bucket) Delete(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	return b.try(ctx, b.patience, "delete "+name, 0, func(ctx context.Context) error {
		err := b.core.RemoveObject(ctx, b.spec.Bucket, b.key(name), minio.RemoveObjectOptions{})
		if notThere(err) {
			return nil
		}
		return err
	})
}
