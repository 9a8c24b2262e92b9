package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/backendtest"
	"cairn/integration/lab/objectstore"
)

// forEachEngine runs a test against versitygw and, with CAIRN_LONG=1 (make
// test-s3, make test-long), against MinIO, whose build takes minutes. With
// CAIRN_RGW=1 (make campaign-rgw) it runs against Ceph RGW, too.
func forEachEngine(t *testing.T, test func(t *testing.T, s *objectstore.Server)) {
	t.Run("versitygw", func(t *testing.T) {
		t.Parallel()
		test(t, objectstore.Start(t, objectstore.Versitygw()))
	})
	t.Run("MinIO", func(t *testing.T) {
		t.Parallel()
		if os.Getenv("CAIRN_LONG") == "" {
			t.Skip("MinIO is tested by make test-s3 (CAIRN_LONG=1)")
		}
		test(t, objectstore.Start(t, objectstore.MinIO()))
	})
	t.Run("RGW", func(t *testing.T) {
		t.Parallel()
		if os.Getenv("CAIRN_RGW") == "" {
			t.Skip("Ceph RGW is tested by make campaign-rgw (CAIRN_RGW=1)")
		}
		test(t, objectstore.Start(t, objectstore.Ceph()))
	})
}

// ignoresConditions says whether an engine overwrites in spite of the condition
// that create-only is: Ceph 16.2 does in buckets with versions, and so with locks.
func ignoresConditions(s *objectstore.Server, versions bool) bool {
	return s.Engine == "ceph" && versions
}

// environment is what a process on a host has.
func environment(s *objectstore.Server) func(string) string {
	return func(name string) string {
		return map[string]string{"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.SecretKey, "AWS_EC2_METADATA_DISABLED": "true"}[name]
	}
}

// hasty is the patience of tests: an engine on this machine answers soon.
var hasty = Patience{Answer: 20 * time.Second, First: 5 * time.Millisecond, Last: 100 * time.Millisecond, Total: 20 * time.Second}

func bucketName() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return "test-" + hex.EncodeToString(b[:])
}

// openNew opens a place in a bucket of its own, at an address.
func openNew(t testing.TB, s *objectstore.Server, address string) *Bucket {
	t.Helper()
	return openAt(t, s, Spec{Host: address, Bucket: bucketName(), Prefix: "hosts/Site_1"}, hasty)
}

func openAt(t testing.TB, s *objectstore.Server, spec Spec, p Patience) *Bucket {
	t.Helper()
	b, err := Open(context.Background(), spec, Options{Getenv: environment(s), MakeBucket: true, Patience: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestContract(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		backendtest.Run(t, func(t *testing.T) backend.Backend { return openNew(t, s, s.Address) })
	})
}

// TestLargeListing: a listing goes over several pages, from where the last one
// ended, and objects of other prefixes are not in it.
func TestLargeListing(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		ctx := context.Background()
		b := openNew(t, s, s.Address)
		other := openAt(t, s, Spec{Host: s.Address, Bucket: b.spec.Bucket, Prefix: "hosts/Site_10"}, hasty)
		if err := other.Put(ctx, "points/0000", []byte("x")); err != nil {
			t.Fatal(err)
		}
		b.pageSize = 20
		if os.Getenv("CAIRN_LONG") != "" {
			b.pageSize = maxPage
		}
		n := 2*b.pageSize + 3
		names := make(chan int, n)
		for i := range n {
			names <- i
		}
		close(names)
		failed := make(chan error, 8)
		for range cap(failed) {
			go func() {
				for i := range names {
					if err := b.Put(ctx, fmt.Sprintf("points/%04d", i), nil); err != nil {
						failed <- err
						return
					}
				}
				failed <- nil
			}()
		}
		for range cap(failed) {
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
		}
		at := 0
		err := b.List(ctx, "points/", func(o backend.Object) error {
			if o.Name != fmt.Sprintf("points/%04d", at) || o.Size != 0 || time.Since(o.Modified).Abs() > time.Hour {
				t.Fatalf("%+v, want number %d", o, at)
			}
			at++
			return nil
		})
		if err != nil || at != n {
			t.Errorf("listed %d of %d, %v", at, n, err)
		}
		if err := b.ReadAt(ctx, "points/0000", nil, 0); err != nil {
			t.Errorf("an empty object: %v", err)
		}
	})
}

// TestPutTwiceIsOurs: the same bytes under the same name are the same object,
// and others are not, even of the same length.
func TestPutTwiceIsOurs(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		ctx := context.Background()
		b := openNew(t, s, s.Address)
		data := make([]byte, 3<<20+17)
		_, _ = rand.Read(data) // never fails
		for range 2 {
			if err := b.Put(ctx, "packs/s/x", data); err != nil {
				t.Fatal(err)
			}
		}
		for _, change := range []func([]byte) []byte{
			func(d []byte) []byte { d[len(d)-1] ^= 1; return d },
			func(d []byte) []byte { return d[:len(d)-1] },
			func([]byte) []byte { return nil },
		} {
			if err := b.Put(ctx, "packs/s/x", change(bytes.Clone(data))); !errors.Is(err, backend.ErrExist) {
				t.Errorf("other bytes under the name: %v", err)
			}
		}
	})
}

// TestRefusals: what is wrong with a place is said in words that say what to
// do, soon, and never with the secret.
func TestRefusals(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	b := openNew(t, s, s.Address)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.Addr().String()
	_ = free.Close() // so that nobody listens there
	home := t.TempDir()
	credentialsIn := func(text string) map[string]string {
		file := filepath.Join(t.TempDir(), "credentials")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "backup"}
	}
	good := map[string]string{"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.SecretKey}
	for name, c := range map[string]struct {
		spec Spec
		env  map[string]string
		is   error
		says string
	}{
		"no bucket":       {Spec{Host: s.Address, Bucket: "nothing-here"}, good, ErrNoBucket, "--make-bucket"},
		"no engine":       {Spec{Host: nobody, Bucket: "b-1"}, good, nil, "is the engine running"},
		"no such host":    {Spec{Host: "no-such-host.invalid", Bucket: "b-1"}, good, nil, "is the host's name right"},
		"https to http":   {Spec{Secure: true, Host: s.Address, Bucket: "b-1"}, good, nil, "s3:http://"},
		"wrong secret":    {b.spec, map[string]string{"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.SecretKey + "x"}, ErrCredentials, "AWS_SECRET_ACCESS_KEY"},
		"unknown key":     {b.spec, map[string]string{"MINIO_ACCESS_KEY": "nobody", "MINIO_SECRET_KEY": s.SecretKey}, ErrCredentials, "AWS_SECRET_ACCESS_KEY"},
		"half a pair":     {b.spec, map[string]string{"AWS_SECRET_ACCESS_KEY": s.SecretKey}, ErrCredentials, "only one is set"},
		"none":            {b.spec, map[string]string{"HOME": home}, ErrCredentials, "~/.aws/credentials"},
		"no file":         {b.spec, map[string]string{"AWS_SHARED_CREDENTIALS_FILE": home + "/none"}, ErrCredentials, "no such file"},
		"no profile":      {b.spec, credentialsIn("[default]\naws_access_key_id=" + s.AccessKey + "\naws_secret_access_key=" + s.SecretKey), ErrCredentials, "[backup]"},
		"half a profile":  {b.spec, credentialsIn("[backup]\naws_secret_access_key=" + s.SecretKey), ErrCredentials, "[backup]"},
		"malformed lines": {b.spec, credentialsIn("[backup]\n" + s.SecretKey + "\n"), ErrCredentials, "[backup]"},
	} {
		t.Run(name, func(t *testing.T) {
			started := time.Now()
			_, err := Open(context.Background(), c.spec, Options{Getenv: func(n string) string { return c.env[n] }})
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want one that says %q", err, c.says)
			}
			if err != nil && strings.Contains(err.Error(), s.SecretKey) {
				t.Error("the error holds the secret")
			}
			if d := time.Since(started); d > 3*openPatience {
				t.Errorf("said after %s", d)
			}
		})
	}
	good = credentialsIn("[default]\naws_access_key_id=a\naws_secret_access_key=b\n[backup]\naws_access_key_id=" + s.AccessKey + "\naws_secret_access_key=" + s.SecretKey)
	again, err := Open(context.Background(), b.spec, Options{Getenv: func(n string) string { return good[n] }})
	if err != nil {
		t.Fatalf("a profile of a credentials file: %v", err)
	}
	_ = again.Close() // was only opened
}

// TestMakeBucketTwice: two hosts' inits may both make the bucket.
func TestMakeBucketTwice(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		b := openNew(t, s, s.Address)
		err := b.core.MakeBucket(context.Background(), b.spec.Bucket, minio.MakeBucketOptions{})
		if a, ok := answered(err); s.Engine == "ceph" && err != nil || s.Engine != "ceph" && (!ok || a.Code != "BucketAlreadyOwnedByYou") { // Ceph says yes to the owner
			t.Errorf("the engine says %v", err)
		}
		_ = openAt(t, s, b.spec, hasty)
	})
}
