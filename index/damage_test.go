package index

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// Whatever happens to a file of a closed index, the next Open gives right
// answers. Each file is flipped at several places, cut, emptied and deleted
// in turn; Badger would panic or lie on most of it.
func TestDamagedFiles(t *testing.T) {
	s := newStore(t, mem.New())
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	p1, _ := backup(t, s, x, 1)
	p2, _ := backup(t, s, x, 2)
	closing(t, x)
	x, _ = opening(t, dir, s) // takes in the map packs
	want := dump(t, x)
	closing(t, x)

	var files []string
	err := filepath.WalkDir(dir, func(path string, d iofs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); err == nil && !d.IsDir() && rel != lockName {
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(files, " "); !strings.Contains(all, ".sst") || !strings.Contains(all, "MANIFEST") ||
		!strings.Contains(all, stateName) || strings.Count(all, listsName+"/") != 2 {
		t.Fatalf("files: %s", all)
	}
	damages := map[string]func(b []byte) []byte{
		"flip first":  func(b []byte) []byte { b[0] ^= 1; return b },
		"flip middle": func(b []byte) []byte { b[len(b)/2] ^= 0x80; return b },
		"flip last":   func(b []byte) []byte { b[len(b)-1] ^= 0xff; return b },
		"cut":         func(b []byte) []byte { return b[:len(b)*2/3] },
		"empty":       func([]byte) []byte { return nil },
		"grow":        func(b []byte) []byte { return append(b, 0) },
		"delete":      nil,
	}
	for _, file := range files {
		for name, damage := range damages {
			t.Run(strings.ReplaceAll(file, "/", "_")+" "+name, func(t *testing.T) {
				dir := copyDir(t, dir)
				path := filepath.Join(dir, file)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if damage == nil {
					err = os.Remove(path)
				} else if len(b) > 0 {
					err = os.WriteFile(path, damage(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				list := strings.HasPrefix(file, listsName)
				points, ok := ReadPoints(t.Context(), dir, s)
				if ok != list {
					t.Errorf("ReadPoints: %v, %v", points, ok)
				}
				x, read := opening(t, dir, s)
				defer closing(t, x)
				if list { // is absent, and only that
					checkHooks(t, x, s)
					if got := dump(t, x); read != 0 || strings.Count(got, "list none") != strings.Count(want, "list none")+1 {
						t.Errorf("%d objects read:\n%s", read, got)
					}
					return
				}
				// All is built anew, and the damaged one is kept to look at.
				if _, err := os.Stat(filepath.Join(dir, asideName)); err != nil || read != 6 {
					t.Errorf("%d objects read, aside: %v", read, err)
				}
				checkKnows(t, x, s, p1, p2)
				if dump(t, x) != want {
					t.Error("the dump differs")
				}
				// The next backup of the same stores nothing anew.
				checkDedup(t, s, x, 2)
			})
		}
	}
}

// checkDedup backs an image up that is stored, up to the commit.
func checkDedup(t *testing.T, s *chunkstore.Store, x *Index, seed uint64) {
	t.Helper()
	w, err := s.Begin(t.Context(), x, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for img := image(seed, imageChunks); len(img) > 0; {
		buf, err := w.Buffer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := copy(buf, img)
		if err := w.Append(t.Context(), &chunkstore.Batch{Data: buf[:n], Placed: func([]chunkstore.Loc) error { return nil }}); err != nil {
			t.Fatal(err)
		}
		img = img[n:]
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := w.Statistics(); st.ChunksNew != 0 || st.ChunksKnown != imageChunks {
		t.Errorf("the next backup: %+v", st)
	}
}

func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Another repository's index is not used, and Badger not shown a file that
// the last Close did not leave (STORE-LAB.md B10).
func TestForeignFilesAndRepository(t *testing.T) {
	s, other := newStore(t, mem.New()), newStore(t, mem.New())
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	backup(t, s, x, 1)
	closing(t, x)
	p2, _ := backup(t, other, nothing{}, 2)

	if _, ok := ReadPoints(t.Context(), dir, other); ok {
		t.Error("ReadPoints reads another repository's index")
	}
	x, read := opening(t, dir, other)
	checkKnows(t, x, other, p2)
	if strings.Count(dump(t, x), "\nsession ") != 1 || read != 3 {
		t.Errorf("%d objects read, knows:\n%s", read, dump(t, x))
	}
	closing(t, x)

	if err := os.WriteFile(filepath.Join(dir, dbName, "00009.mem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	x, read = opening(t, dir, other)
	checkKnows(t, x, other, p2)
	if read != 3 {
		t.Errorf("%d objects read", read)
	}
	closing(t, x)
	// At most one copy is kept aside.
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 5 {
		t.Errorf("%v in the index's directory: %v", entries, err)
	}
}

// A process that is killed leaves an index that the next one builds anew,
// from the lists: the data pack is not read again.
func TestKilledProcess(t *testing.T) {
	const env = "CAIRN_INDEX_TEST_DIR"
	if dir := os.Getenv(env); dir != "" { // the process to be killed
		place, err := local.Open(filepath.Join(dir, "repo"))
		if err != nil {
			t.Fatal(err)
		}
		s := newStore(t, place)
		x, _ := opening(t, filepath.Join(dir, "index"), s)
		backup(t, s, x, 1)
		fmt.Println("stored")
		time.Sleep(time.Minute)
		t.Fatal("was not killed")
	}
	dir := t.TempDir()
	place, err := local.Create(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, place)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKilledProcess$")
	child.Env = append(os.Environ(), env+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "stored\n" {
		t.Errorf("the child said %q: %v", line, err)
	}
	if _, err := Open(ctx, filepath.Join(dir, "index"), s, Options{Wait: -1}); !errors.Is(err, ErrBusy) {
		t.Errorf("while another process has it: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed, as it should

	counted := &countingStore{Store: s}
	x, read := opening(t, filepath.Join(dir, "index"), counted)
	if read != 3 || counted.lists != 0 {
		t.Errorf("%d objects taken in, %d lists of chunk IDs read from the store", read, counted.lists)
	}
	got := dump(t, x)
	if _, err := os.Stat(filepath.Join(dir, "index", asideName)); err != nil {
		t.Error(err)
	}
	if _, st := backup(t, s, x, 1); st.ChunksNew != 0 {
		t.Errorf("the same again: %+v", st)
	}
	closing(t, x)
	if strings.Count(got, "\nhook ") < 20 {
		t.Errorf("knows only:\n%s", got)
	}
}

// countingStore counts the lists of chunk IDs that are read.
type countingStore struct {
	*chunkstore.Store
	lists int
}

func (c *countingStore) ChunkIDs(ctx context.Context, ref chunkstore.PackRef) ([]chunk.ID, error) {
	c.lists++
	return c.Store.ChunkIDs(ctx, ref)
}

// What lies on disk is never believed without its checksum, whatever it is.
func FuzzValues(f *testing.F) {
	id := restorepoint.Summary{ID: strings.Repeat("0a", 16), VM: "web01"}
	point, err := decision{pointCommitted, id}.value()
	if err != nil {
		f.Fatal(err)
	}
	l := lists{"", newSealer([32]byte{1})}
	list := l.marshal(chunkstore.PackRef{}, []chunk.ID{{1}, {2}})
	for _, b := range [][]byte{nil, point, {byte(pointAborted)}, packEntry{7, packData, 9}.value(), numberValue(3),
		holdersValue([]uint32{1, 5}), make([]byte, refSize), list} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := parseDecision(b); ok {
			again, err := d.value()
			if d2, ok := parseDecision(again); err == nil && (!ok || d2.summary.ID != d.summary.ID) {
				t.Errorf("%q is read as %q", b, again)
			}
		}
		if e, ok := parsePackEntry(b); ok && !bytes.Equal(e.value(), b) {
			t.Errorf("%q is read as %+v", b, e)
		}
		if n, ok := parseHolders(b); ok && !bytes.Equal(holdersValue(n), b) {
			t.Errorf("%q is read as %v", b, n)
		}
		if r, ok := parseRef(b); ok && !bytes.Equal(appendRef(nil, r), b) {
			t.Errorf("%q is read as %v", b, r)
		}
		if ids, ok := l.parse(chunkstore.PackRef{}, b); ok && !bytes.Equal(l.marshal(chunkstore.PackRef{}, ids), b) {
			t.Errorf("%q is read as a list of %d", b, len(ids))
		}
		if _, ok := l.parse(chunkstore.PackRef{Hash: chunkstore.PackRef{}.Hash, Session: chunkstore.SessionID{1}}, b); ok && bytes.Equal(b, list) {
			t.Error("one pack's list is taken for another's")
		}
		if v, ok := l.sealer.open([]byte("key"), b); ok && !bytes.Equal(l.sealer.seal([]byte("key"), v), b) {
			t.Errorf("%q is opened as %q", b, v)
		}
	})
}
