package integration

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/s3"
	"cairn/integration/lab/labtest"
	"cairn/integration/lab/objectstore"
)

// TestBucketJourney: two hypervisor hosts share a repository in object storage.
// Both back up a VM at the same time; each restores the other's point, byte for
// byte; what one has stored the other does not store again; increments, the
// mount and check work as over a folder. No output, and nothing in the bucket,
// holds the credentials.
func TestBucketJourney(t *testing.T) {
	engine := objectstore.Versitygw()
	if os.Getenv("CAIRN_RGW") != "" { // make campaign-rgw
		engine = objectstore.Ceph()
	}
	server := objectstore.Start(t, engine)
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
	a, b := bareHost(t), bareHost(t)
	a.repo = "s3:http://" + server.Address + "/cairn-test/fleet"
	b.repo, b.key = a.repo, a.key
	var said []result
	run := func(h *host, code int, args ...string) result {
		r := h.run(t, code, args...)
		said = append(said, r)
		return r
	}
	run(a, exitNoRepository, "points").mentions(t, "--make-bucket")
	run(a, exitOK, "init", "--make-bucket", "--no-recovery-key").mentions(t, "create-only")

	ga, gb := labtest.Start(t, nil), labtest.Start(t, nil)
	awaitAgent(t, ga, true)
	awaitAgent(t, gb, true)
	run(a, exitOK, "vm", "add", vmName, "--qmp", ga.QMPSocket)
	run(b, exitOK, "vm", "add", "db01", "--qmp", gb.QMPSocket)
	run(a, exitOK, "doctor").mentions(t, "passed its last check")
	labtest.Shell(t, gb, "head -c 3000000 /dev/urandom >/srv/only-here; sync")

	pause(t, ga)
	pause(t, gb)
	wantA, wantB := truth(t, ga, a.dir), truth(t, gb, b.dir)
	ra, rb := a.start(t, "backup", vmName, "--json", "--every-block"), b.start(t, "backup", "db01", "--json", "--every-block")
	resA, resB := ra.wait(), rb.wait()
	said = append(said, resA, resB)
	if resA.code != exitOK || resB.code != exitOK {
		t.Fatalf("two hosts at once: %d\n%s\n%d\n%s", resA.code, resA.stderr, resB.code, resB.stderr)
	}
	sumA, sumB := summaryOf(t, resA), summaryOf(t, resB)
	for _, disk := range guestDisks {
		sameImage(t, disk+" of the other host's VM", b.restoreDisk(t, sumA.Point, disk), wantA[disk])
		sameImage(t, disk+" of the other host's VM", a.restoreDisk(t, sumB.Point, disk), wantB[disk])
	}
	resume(t, ga)
	resume(t, gb)

	// What was stored by now is found by both.
	again := summaryOf(t, run(b, exitOK, "backup", "db01", "--json", "--full-read", "--every-block"))
	if again.Read != "full" || again.BytesStored > sumB.BytesStored/4 {
		t.Errorf("read whole again, host b stored %d bytes; at first %d", again.BytesStored, sumB.BytesStored)
	}
	labtest.Shell(t, ga, "echo over a bucket >/home/anna/bucket.txt; sync")
	next := summaryOf(t, run(a, exitOK, "backup", vmName, "--json"))
	if next.Read != "incremental" {
		t.Errorf("the second backup of host a: %+v", next)
	}
	run(b, exitOK, "check", "--read-data").mentions(t, "no damage")
	if got := run(b, exitOK, "cat", vmName+"@latest:/home/anna/bucket.txt").stdout; got != "over a bucket\n" {
		t.Errorf("host b reads %q from host a's point", got)
	}
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		t.Logf("the mount is left out: /dev/fuse: %v", err)
	} else {
		dir := filepath.Join(b.dir, "mnt")
		pid := b.mountAt(t, dir)
		if got, err := os.ReadFile(filepath.Join(dir, vmName, "latest/fs/home/anna/bucket.txt")); err != nil || string(got) != "over a bucket\n" {
			t.Errorf("the mount shows %q, %v", got, err)
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		awaitUnmounted(t, dir, pid)
	}
	run(a, exitOK, "engine", "check").mentions(t, "create-only")

	for _, r := range said {
		if strings.Contains(r.stdout+r.stderr, server.SecretKey) {
			t.Errorf("cairn %s prints the secret", strings.Join(r.args, " "))
		}
	}
	bucketHoldsNot(t, server, "cairn-test", server.SecretKey)
	dirs := []string{a.state, a.cache, a.conf, b.state, b.cache, b.conf}
	if server.Engine == "versitygw" { // Ceph keeps its users with their secrets where it keeps the objects
		dirs = append(dirs, filepath.Join(server.Dir, "data"))
	}
	for _, dir := range dirs {
		holdsNot(t, dir, server.SecretKey)
	}
}

// bucketHoldsNot fails the test if an object of a bucket, or an object's name, has
// the word in it, as whoever may read the bucket sees them.
func bucketHoldsNot(t *testing.T, server *objectstore.Server, bucket, word string) {
	t.Helper()
	ctx := t.Context()
	b, err := s3.Open(ctx, s3.Spec{Host: server.Address, Bucket: bucket}, s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	n, sizeBytes := 0, 0
	err = b.List(ctx, "", func(o backend.Object) error {
		data, err := b.Get(ctx, o.Name, o.Size)
		n, sizeBytes = n+1, sizeBytes+len(data)
		if strings.Contains(o.Name, word) || bytes.Contains(data, []byte(word)) {
			t.Errorf("%s in the bucket holds the secret", o.Name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if n == 0 {
		t.Error("the bucket is empty: nothing was looked at")
	}
	t.Logf("%d objects of %s were looked through for the secret: %d bytes", n, server.Engine, sizeBytes)
}

// holdsNot fails the test if a file below dir has the word in it.
func holdsNot(t *testing.T, dir, word string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(word)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
