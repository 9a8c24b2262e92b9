package powercut

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunkstoretest"
)

const (
	cutsPerRecording = 40
	patience         = 3 * time.Minute // for one recording, or one cut
)

// filesystems are those that a place asks for (local.syncDir), but zfs.
var filesystems = []string{"ext4", "xfs", "btrfs"}

func isMissing(err error) bool { return errors.Is(err, backend.ErrNotExist) }

// scratch is a folder in memory, where there is one: images that are thrown
// away need no disk.
func scratch(t *testing.T) string {
	t.Helper()
	parent := "/dev/shm"
	if st, err := os.Stat(parent); err != nil || !st.IsDir() {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "cairn-powercut-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// record lets a host work on a disk that is recorded in a folder.
func record(t *testing.T, fstype, folder string, seed uint64, wrap wrapper) *Recording {
	t.Helper()
	d, err := Start(fstype, folder, patience)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	werr := work(ctx, d.Dir, seed, wrap, func(w word) error { return d.Mark(w.String()) })
	r, err := d.End()
	if err = errors.Join(werr, err); err != nil {
		t.Fatalf("%s, seed %d: %v", fstype, seed, err)
	}
	return r
}

// cuts draws where the power goes: anywhere, or right behind what was
// confirmed.
func cuts(r *Recording, seed uint64, n int) []Cut {
	rnd := rand.New(rand.NewPCG(seed, 0xc1))
	first := slices.IndexFunc(r.Events, func(e Event) bool { return e.Kind == Mark })
	var done []int
	for i, e := range r.Events {
		if e.Kind == Mark && strings.Contains(string(e.Data), `"done":true`) {
			done = append(done, i+1)
		}
	}
	out := make([]Cut, n)
	for i := range out {
		at := first + rnd.IntN(len(r.Events)-first) + 1
		if rnd.IntN(3) == 0 {
			at = min(done[rnd.IntN(len(done))]+rnd.IntN(5), len(r.Events))
		}
		out[i] = Cut{at, rnd.Uint64()}
	}
	return out
}

// survive looks at what a cut leaves.
func survive(ctx context.Context, r *Recording, fstype, dir string, c Cut) (o outcome, err error) {
	image, mounted := filepath.Join(dir, "cut-image"), filepath.Join(dir, "cut")
	if err := r.Build(c, image); err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	if err := os.Mkdir(mounted, 0o700); err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, os.Remove(mounted)) }()
	if err := Mount(fstype, image, mounted); err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, Unmount(mounted)) }()
	p, err := promisesOf(r.Marks(c))
	if err != nil {
		return o, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p.keeps(ctx, mounted, c.Seed)
}

// keep moves a recording to where it outlives the test.
func keep(t *testing.T, work string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn-powercut-kept-")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"base", "recording"} {
		in, err := os.ReadFile(filepath.Join(work, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), in, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
	return dir
}

// Goal: whenever the power goes, what was confirmed is there, what is listed can
// be read, and the repository and its index go on working. Method: nights of a
// host on real file systems whose disk is recorded; the image of each cut is
// mounted, and all promises made before it are held against it.
//
// CAIRN_CUT_SEED and CAIRN_CUT_COUNT choose other cuts. Where the writes of a
// recording fall is up to the kernel, so a failed cut is replayed from the
// recording, which is kept.
func TestRealPowerCuts(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	if replay := os.Getenv("CAIRN_CUT_REPLAY"); replay != "" {
		replayCut(t, replay)
		return
	}
	count, seed := chunkstoretest.Number(t, "CAIRN_CUT_COUNT", 120), uint64(chunkstoretest.Number(t, "CAIRN_CUT_SEED", 1))
	for n := 0; count > 0; n++ {
		fstype := filesystems[n%len(filesystems)]
		k := min(count, cutsPerRecording)
		count -= k
		playRecording(t, fstype, seed+uint64(n/len(filesystems)), k)
	}
}

func playRecording(t *testing.T, fstype string, seed uint64, count int) {
	work, start := scratch(t), time.Now()
	r := record(t, fstype, work, seed, nil)
	recorded := time.Since(start)
	var points, rebuilt, dedup int
	var known int64
	for i, c := range cuts(r, seed, count) {
		o, err := survive(t.Context(), r, fstype, work, c)
		if err != nil {
			t.Fatalf("%s, seed %d, cut %d of %d: %v\nreplay it with CAIRN_CUT_REPLAY=%s,%s,%s", fstype, seed, i, len(r.Events), err, keep(t, work), fstype, c)
		}
		points += o.points
		known += o.known
		if o.rebuilt {
			rebuilt++
		}
		if o.known > 0 {
			dedup++
		}
	}
	t.Logf("%s, seed %d: %d events recorded in %v; %d cuts in %v: %d points read, %d indexes rebuilt, %d next backups found %d chunks stored", fstype, seed, len(r.Events),
		recorded.Round(time.Millisecond), count, (time.Since(start) - recorded).Round(time.Millisecond), points, rebuilt, dedup, known)
	if err := os.RemoveAll(work); err != nil { // the campaign makes many
		t.Error(err)
	}
}

// replayCut looks at one cut of a recording that was kept.
func replayCut(t *testing.T, replay string) {
	parts := strings.Split(replay, ",")
	if len(parts) != 3 {
		t.Fatalf("CAIRN_CUT_REPLAY=%s: want FOLDER,FILESYSTEM,POSITION:SEED", replay)
	}
	r, err := Load(filepath.Join(parts[0], "recording"), filepath.Join(parts[0], "base"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCut(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	o, err := survive(t.Context(), r, parts[1], scratch(t), c)
	t.Logf("%+v", o)
	if err != nil {
		t.Fatal(fmt.Errorf("cut %v: %w", c, err))
	}
}
