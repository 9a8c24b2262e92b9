package receive

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/archive"
	"cairn/guest/filesystem"
)

// putFile puts a small file at a path.
func putFile(t *testing.T, path string, during func()) (*guest.PutResult, error) {
	t.Helper()
	target := guest.PutTarget{Path: []byte(path), Where: guest.PutAt, Entries: 1, Bytes: 100}
	return putStream(t, receiver(t), guest.Put{Targets: []guest.PutTarget{target}}, func(w io.Writer) error {
		s := newSender(w)
		s.put(archive.Record{Kind: archive.File, Name: "f", Attr: filesystem.Attr{Mode: 0o100644, Size: 3}})
		if err := s.w.Flush(); err != nil {
			return err
		}
		if during != nil {
			during()
		}
		s.put(archive.Record{Kind: archive.Data, Data: []byte("new")})
		s.put(archive.Record{Kind: archive.End})
		return s.finish()
	})
}

func TestPlacesThatAreRefused(t *testing.T) {
	ext4 := mounted(t, "ext4", 64)
	for _, name := range []string{"mount/here", "immutable/f", "append/f", "flagged", "user/f"} {
		writeFile(t, ext4+"/"+name, "old")
	}
	run(t, "mount", "-t", "tmpfs", "none", ext4+"/mount")
	t.Cleanup(func() { run(t, "umount", ext4+"/mount") })
	setFlags(t, ext4+"/immutable", 0x10)
	setFlags(t, ext4+"/flagged", 0x10)
	setFlags(t, ext4+"/append", 0x20)
	must(t, os.Symlink(ext4+"/user", ext4+"/link-of-a-user"))
	must(t, os.Lchown(ext4+"/link-of-a-user", 1000, 1000))
	must(t, os.Symlink("loop", ext4+"/loop"))
	for _, c := range []struct{ path, code, says string }{
		{"/", guest.CodeInvalid, "/ itself"},
		{"/proc/f", guest.CodeInvalid, "proc"},
		{"/proc/self/fd/0", guest.CodeInvalid, ""},
		{"/sys/f", guest.CodeInvalid, "sysfs"},
		{"/dev/f", guest.CodeInvalid, "devtmpfs"},
		{"/dev/pts/f", guest.CodeInvalid, "devpts"},
		{ext4 + "/mount", guest.CodeBusy, "mounted"},
		{ext4, guest.CodeBusy, "mounted"},
		{filepath.Dir(ext4), guest.CodeBusy, "mounted"},
		{ext4 + "/immutable/f", guest.CodeFailed, "chattr -i"},
		{ext4 + "/immutable/g", guest.CodeFailed, "chattr -i"},
		{ext4 + "/flagged", guest.CodeFailed, "chattr -i"},
		{ext4 + "/append/f", guest.CodeFailed, "chattr -a"},
		{ext4 + "/link-of-a-user/f", guest.CodeInvalid, "user 1000"},
		{ext4 + "/loop/f", guest.CodeInvalid, "symbolic links"},
		{ext4 + "/absent/f", guest.CodeNotFound, "not there"},
		{ext4 + "/flagged/f", guest.CodeInvalid, "not a folder"},
		{ext4 + "/" + strings.Repeat("n", 256), guest.CodeInvalid, "too long"},
		{"relative/f", guest.CodeInvalid, "absolute"},
	} {
		for _, dry := range []bool{true, false} {
			p := guest.Put{Targets: []guest.PutTarget{{Path: []byte(c.path), Where: guest.PutAt, Entries: 1}}, DryRun: dry}
			_, err := receiver(t).Put(t.Context(), p, strings.NewReader(""))
			if code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s (dry run %v): %v, want code %s and %q", c.path, dry, err, c.code, c.says)
			}
		}
	}
	setFlags(t, ext4+"/flagged", 0)
	setFlags(t, ext4+"/immutable", 0)
	setFlags(t, ext4+"/append", 0)
	run(t, "mount", "-o", "remount,ro", ext4)
	if _, err := putFile(t, ext4+"/user/f", nil); code(err) != guest.CodeFailed || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("read-only: %v", err)
	}
	run(t, "mount", "-o", "remount,rw", ext4)
	if readFile(t, ext4+"/user/f") != "old" {
		t.Error("something was written")
	}
	clean(t, ext4, ext4+"/user", ext4+"/immutable")
}

// A filesystem that becomes read-only meanwhile, as after an error on its disk.
func TestReadOnlyMeanwhile(t *testing.T) {
	ext4 := mounted(t, "ext4", 64)
	writeFile(t, ext4+"/f", "old")
	_, err := putFile(t, ext4+"/f", func() {
		// An open file that is written keeps a plain remount from being done.
		run(t, "mount", "-o", "remount,rw,errors=remount-ro", ext4)
		must(t, os.WriteFile("/sys/fs/ext4/"+loopOf(t, ext4)+"/trigger_fs_error", []byte("a test"), 0o600))
	})
	if err == nil {
		t.Fatal("a put onto a filesystem that has become read-only is done")
	}
	if readFile(t, ext4+"/f") != "old" {
		t.Error("the old file is gone")
	}
	t.Logf("%v", err)
}

func loopOf(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	return fmt.Sprintf("loop%d", unix.Minor(st.Dev))
}

func TestNoSpace(t *testing.T) {
	ext4 := mounted(t, "ext4", 64, "-N", "2000")
	writeFile(t, ext4+"/tree/f", "old")
	ask := func(entries, bytes int64) error {
		target := guest.PutTarget{Path: []byte(ext4 + "/tree"), Where: guest.PutAt, Dir: true, Entries: entries, Bytes: bytes}
		_, err := receiver(t).Put(t.Context(), guest.Put{Targets: []guest.PutTarget{target}, DryRun: true}, nil)
		return err
	}
	if err := ask(100, 20<<20); err != nil {
		t.Errorf("20 MB: %v", err)
	}
	for _, c := range []struct{ entries, bytes int64 }{{1, 70 << 20}, {1, 1 << 60}, {1990, 0}, {1 << 40, 0}} {
		if err := ask(c.entries, c.bytes); code(err) != guest.CodeNoSpace || !strings.Contains(err.Error(), ext4) {
			t.Errorf("%d entries of %d bytes: %v", c.entries, c.bytes, err)
		}
	}
	// Two targets on one filesystem need room together.
	p := guest.Put{DryRun: true}
	for _, name := range []string{"a", "b"} {
		p.Targets = append(p.Targets, guest.PutTarget{Path: []byte(ext4 + "/" + name), Where: guest.PutAt, Dir: true, Entries: 1, Bytes: 35 << 20})
	}
	if _, err := receiver(t).Put(t.Context(), p, nil); code(err) != guest.CodeNoSpace {
		t.Errorf("two targets: %v", err)
	}
}

// Somebody fills the filesystem while files are put there.
func TestFullMeanwhile(t *testing.T) {
	ext4 := mounted(t, "ext4", 64)
	writeFile(t, ext4+"/tree/f", "old")
	from := t.TempDir() + "/tree"
	for i := range 20 {
		writeFile(t, fmt.Sprintf("%s/d%d/f", from, i), strings.Repeat("n", 1<<20))
	}
	r := receiver(t)
	target := announce(from, ext4+"/tree")
	target.Bytes, target.Entries = 21<<20, 100
	_, err := putStream(t, r, guest.Put{Targets: []guest.PutTarget{target}}, func(w io.Writer) error {
		s := newSender(w)
		n := 0
		s.before = func() {
			if n++; n == 10 {
				_ = os.WriteFile(ext4+"/other", make([]byte, 60<<20), 0o600) // as much as there is
			}
		}
		s.tree(from)
		return s.finish()
	})
	if code(err) != guest.CodeNoSpace {
		t.Fatalf("%v", err)
	}
	if readFile(t, ext4+"/tree/f") != "old" {
		t.Error("the old tree is gone")
	}
	clean(t, ext4)
	noJournal(t, r)
}

// What ends a put has its code; what only one file lacks ends none.
func TestFailures(t *testing.T) {
	for err, want := range map[error]string{unix.ENOSPC: guest.CodeNoSpace, unix.EDQUOT: guest.CodeNoSpace, unix.EROFS: guest.CodeFailed, unix.EIO: guest.CodeFailed} {
		err = fmt.Errorf("set owner: %w", err)
		got := failure("/x", err)
		if !fatal(got) || code(callError(got)) != want || !strings.Contains(got.Error(), "/x") {
			t.Errorf("%v: %v, %s", err, got, code(callError(got)))
		}
	}
	ext4 := mounted(t, "ext4", 64, "-b", "4096")
	r, err := putStream(t, receiver(t), guest.Put{Targets: []guest.PutTarget{{Path: []byte(ext4 + "/f"), Where: guest.PutAt, Entries: 1}}}, func(w io.Writer) error {
		s := newSender(w)
		s.put(archive.Record{Kind: archive.File, Name: "f", Attr: filesystem.Attr{Mode: 0o100644}, Xattrs: []filesystem.Xattr{{Name: "user.large", Value: make([]byte, 60000)},
			{Name: "system.odd", Value: []byte("x")}, {Name: "user.small", Value: []byte("x")}}})
		s.put(archive.Record{Kind: archive.End})
		return s.finish()
	})
	if err != nil || !r.Done || len(r.Failures) != 2 || r.Lost != 0 || !strings.Contains(r.Failures[0].Reason, "user.large") {
		t.Errorf("attributes that cannot be kept: %+v, %v", r, err)
	}
	if len(xattrsOf(ext4+"/f")) != 1 {
		t.Error("the attribute that can be kept is not there")
	}
}

// A user who owns the folders on the way swaps them for links to what is not
// hers, all the time. What lies outside never changes.
func TestSwapRace(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	home, outside := dir+"/home/anna", dir+"/outside"
	for _, name := range []string{home + "/letters/2024/f", outside + "/2024/f", outside + "/letters/2024/f"} {
		writeFile(t, name, "old")
	}
	before := list(t, outside)
	writeFile(t, dir+"/from/2024/f", "evil")
	writeFile(t, dir+"/from/2024/sub/g", "evil")
	for _, link := range []string{dir + "/link-letters", dir + "/link-anna"} {
		must(t, os.Symlink(outside, link))
		must(t, os.Lchown(link, 1000, 1000))
	}
	// Each swap is of a name in a directory that stays open, or it would itself
	// go through the links.
	open := func(name string) int {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	top, anna, homes := open(dir), open(home), open(dir+"/home")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		rnd := rand.New(rand.NewPCG(3, 4))
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := unix.Renameat2(top, "link-letters", anna, "letters", unix.RENAME_EXCHANGE)
			if rnd.IntN(2) == 0 {
				err = errors.Join(err, unix.Renameat2(top, "link-anna", homes, "anna", unix.RENAME_EXCHANGE))
			}
			if err != nil {
				t.Errorf("swap: %v", err)
				return
			}
		}
	}()
	done, refused := 0, 0
	r := receiver(t)
	for range 300 {
		res, err := putTrees(t, r, guest.Put{Targets: []guest.PutTarget{announce(dir+"/from/2024", home+"/letters/2024")}}, dir+"/from/2024")
		if err == nil && res.Done {
			done++
		} else {
			refused++
		}
	}
	close(stop)
	<-stopped
	t.Logf("%d puts were done, %d refused", done, refused)
	if done == 0 || refused == 0 {
		t.Error("the race was not met")
	}
	same(t, list(t, outside), before)
	clean(t, outside, outside+"/letters")
}

// Only root can get at what is being put, whatever its modes are.
func TestStageIsClosedToOthers(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/shared", 0o777))
	must(t, os.Chmod(dir+"/shared", 0o777))
	_, err := putFile(t, dir+"/shared/f", func() {
		for {
			entries, err := os.ReadDir(dir + "/shared")
			must(t, err)
			if len(entries) == 0 {
				continue
			}
			st, err := entries[0].Info()
			must(t, err)
			if st.Mode() != os.ModeDir|0o700 {
				t.Errorf("the stage has mode %v", st.Mode())
			}
			return
		}
	})
	must(t, err)
}

func TestRemoveTree(t *testing.T) {
	ext4 := mounted(t, "ext4", 64)
	top := ext4 + "/top"
	must(t, os.Mkdir(top, 0o700))
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 700 { // deeper than there may be open files, and than a path may be long
		must(t, unix.Mkdirat(fd, "deep-0-and-a-name-that-is-not-short", 0o700))
		must(t, unix.Mkdirat(fd, "deep-1", 0o700))
		below, err := unix.Openat(fd, "deep-0-and-a-name-that-is-not-short", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = below
	}
	unix.Close(fd)
	for i := range 2500 {
		writeFile(t, fmt.Sprintf("%s/wide/f%d", top, i), "")
	}
	writeFile(t, ext4+"/keep/f", "keep")
	must(t, os.Symlink(ext4+"/keep", top+"/link"))
	must(t, os.Mkdir(top+"/mounted", 0o755))
	run(t, "mount", "--bind", ext4+"/keep", top+"/mounted")
	at, err := unix.Open(ext4, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(at)
	tops, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(tops)
	for _, old := range []bool{true, false} { // a kernel without openat2 first
		r := &remover{top: tops, old: old}
		if err := r.remove(tops, "mounted", 0); !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
			t.Errorf("a mount, old %v: %v", old, err)
		}
		if readFile(t, ext4+"/keep/f") != "keep" {
			t.Errorf("what is mounted was removed, old %v", old)
		}
	}
	if err := removeTree(at, "top", 0); err == nil {
		t.Error("a mount was removed")
	}
	run(t, "umount", top+"/mounted")
	writeFile(t, top+"/deep-0/f", "of an interrupted run")
	must(t, removeTree(at, "top", 0))
	must(t, removeTree(at, "top", 0)) // nothing is there
	if _, err := os.Lstat(top); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	if readFile(t, ext4+"/keep/f") != "keep" {
		t.Error("what a mount or a link leads to was removed")
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n36 28 0:5 / /a\\040b rw - tmpfs none rw\n")
	f.Add("x")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseMounts(strings.NewReader(text))
		for _, m := range list {
			if m.kind == "" && err == nil {
				t.Errorf("a mount without a type from %q", text)
			}
		}
	})
}

// TestRemoveOfAnother: a folder that somebody has put in the place of the one
// that was made is not emptied.
func TestRemoveOfAnother(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "stage", "in"), 0o700))
	must(t, os.MkdirAll(filepath.Join(dir, "theirs", "precious"), 0o700))
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(at)
	made, err := inode(at, "stage")
	must(t, err)
	must(t, os.Rename(filepath.Join(dir, "stage"), filepath.Join(dir, "away")))
	must(t, os.Rename(filepath.Join(dir, "theirs"), filepath.Join(dir, "stage")))
	if err := removeTree(at, "stage", made); err == nil {
		t.Error("another folder was removed")
	}
	if _, err := os.Stat(filepath.Join(dir, "stage", "precious")); err != nil {
		t.Errorf("what was in it: %v", err)
	}
	must(t, removeTree(at, "away", made))
}

// The agent's own folders are not replaced, nor is anything in them, by whatever
// name.
func TestOwnFoldersAreSpared(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	state, run2 := top+"/var/lib/agent", top+"/run/agent"
	for _, name := range []string{state + "/sub/f", run2 + "/f", top + "/var/lib/other/f", top + "/bind/f"} {
		writeFile(t, name, "old")
	}
	must(t, os.Symlink("var/lib", top+"/link"))
	must(t, os.Symlink(state, top+"/spelled"))
	run(t, "mount", "--bind", top+"/var", top+"/bind")
	t.Cleanup(func() { run(t, "umount", top+"/bind") })
	r := New(top+"/spelled", run2, top+"/not/there/yet")
	for _, c := range []struct{ path, says string }{
		{state, "own folder"},
		{state + "/sub", "own folder"},
		{state + "/sub/f", "own folder"},
		{state + "/sub/new", "own folder"},
		{run2, "own folder"},
		{run2 + "/f", "own folder"},
		{top + "/run", "one by one, without"},
		{top + "/var/lib", "one by one, without"},
		{top + "/var", "one by one, without"},
		{top + "/link/agent", "own folder"},
		{top + "/spelled", "own folder"},
		{top + "/bind/lib", "one by one, without"},
		{top + "/bind/lib/agent", "own folder"},
		{top + "/bind/lib/agent/sub/new", "own folder"},
		{top + "/not", "one by one, without"},
	} {
		for _, dry := range []bool{true, false} {
			p := guest.Put{Targets: []guest.PutTarget{{Path: []byte(c.path), Where: guest.PutAt, Entries: 1}}, DryRun: dry}
			_, err := r.Put(t.Context(), p, strings.NewReader(""))
			if code(err) != guest.CodeInvalid || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s (dry run %v): %v, want %q", c.path, dry, err, c.says)
			}
		}
	}
	for path, keep := range map[string]string{top + "/var/lib/other": "", top + "/var/lib/other/f": "", top + "/var/lib/agent-2": "", top + "/var/lib": ".then", state: ".then"} {
		p := guest.Put{Targets: []guest.PutTarget{{Path: []byte(path), Where: guest.PutAt, Entries: 1}}, DryRun: true, KeepBoth: keep}
		if _, err := r.Put(t.Context(), p, strings.NewReader("")); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
