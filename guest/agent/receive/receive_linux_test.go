package receive

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/archive"
	"cairn/guest/filesystem"
)

// A tree of everything goes from one filesystem into another, into a folder
// that would have its files inherit an ACL and a group; and back.
func TestPutKeepsEverything(t *testing.T) {
	ext4, xfs := mounted(t, "ext4", 200, "-b", "4096", "-I", "256"), mounted(t, "xfs", 400)
	awkward(t, ext4+"/tree")
	want := list(t, ext4+"/tree")
	for _, dir := range []string{xfs + "/in", ext4 + "/in"} {
		must(t, os.Mkdir(dir, 0o755))
		must(t, unix.Setxattr(dir, aclDefault, acl(77), 0))
		must(t, unix.Chmod(dir, 0o2777))
		must(t, os.Lchown(dir, 0, 55))
		r, err := putTrees(t, receiver(t), guest.Put{Targets: []guest.PutTarget{announce(ext4+"/tree", dir+"/tree")}}, ext4+"/tree")
		if err != nil {
			t.Fatal(err)
		}
		if !r.Done || r.Reason != "" || len(r.Failures) > 0 || r.Lost > 0 || r.Targets[0].Replaced != "" || r.Targets[0].Left != nil {
			t.Errorf("%s: %+v", dir, r)
		}
		if r.Files != 18 || r.Dirs != 64 || r.Links != 7 || r.Others != 3 || r.Verified != r.Files {
			t.Errorf("%s: counted %+v", dir, r)
		}
		same(t, list(t, dir+"/tree"), want)
		clean(t, dir)
	}
}

func TestPutReplaces(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/from/tree/new", "new")
	writeFile(t, dir+"/from/file", "new file")
	must(t, os.Symlink("nowhere", dir+"/from/link"))
	for _, c := range []struct{ from, what string }{{"tree", "directory"}, {"tree", "file"}, {"tree", "symlink"}, {"tree", ""}, {"file", "file"}, {"file", "directory"}, {"file", "symlink"}, {"file", ""}, {"link", "file"}} {
		target := filepath.Join(dir, "to", c.from+"-"+c.what)
		switch c.what {
		case "directory":
			writeFile(t, target+"/old/deep", "old")
		case "file":
			writeFile(t, target, "old")
		case "symlink":
			writeFile(t, dir+"/elsewhere/keep", "keep")
			must(t, os.Symlink(dir+"/elsewhere", target))
		}
		must(t, os.MkdirAll(dir+"/to", 0o755))
		p := guest.Put{Targets: []guest.PutTarget{announce(dir+"/from/"+c.from, target)}, DryRun: true}
		plan, err := receiver(t).Put(t.Context(), p, nil)
		if err != nil || plan.Done || plan.Targets[0].Replaced != c.what {
			t.Errorf("%s over %q: dry run: %+v, %v", c.from, c.what, plan, err)
		}
		p.DryRun = false
		r, err := putTrees(t, receiver(t), p, dir+"/from/"+c.from)
		if err != nil || !r.Done || r.Targets[0].Replaced != c.what || string(r.Targets[0].Path) != target {
			t.Fatalf("%s over %q: %+v, %v", c.from, c.what, r, err)
		}
		same(t, list(t, target), list(t, dir+"/from/"+c.from))
	}
	if readFile(t, dir+"/elsewhere/keep") != "keep" {
		t.Error("a link that was replaced was followed")
	}
	clean(t, dir+"/to")
}

func TestPutKeepsBoth(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/tree/a", "new")
	writeFile(t, dir+"/to/tree/a", "old")
	r := receiver(t)
	p := guest.Put{Targets: []guest.PutTarget{announce(dir+"/tree", dir+"/to/tree")}, KeepBoth: ".cairn-2026-10-12T02-00-00Z"}
	got, err := putTrees(t, r, p, dir+"/tree")
	if err != nil || !got.Done || got.Targets[0].Replaced != "" || string(got.Targets[0].Path) != dir+"/to/tree"+p.KeepBoth {
		t.Fatalf("%+v, %v", got, err)
	}
	if readFile(t, dir+"/to/tree/a") != "old" || readFile(t, dir+"/to/tree"+p.KeepBoth+"/a") != "new" {
		t.Error("not both are there")
	}
	if _, err := putTrees(t, r, p, dir+"/tree"); code(err) != guest.CodeExists {
		t.Errorf("a second time: %v", err)
	}
	clean(t, dir+"/to")
}

func TestPutInto(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/from", "new")
	writeFile(t, dir+"/to/file", "old")
	must(t, os.Symlink(dir+"/to", dir+"/link"))
	for _, c := range []struct {
		where guest.PutWhere
		path  string
		want  string // where it is then; or a code
	}{
		{guest.PutInto, "/to", "/to/from"},
		{guest.PutInto, "/link", "/to/from"},
		{guest.PutEither, "/to", "/to/from"},
		{guest.PutEither, "/link", "/to/from"},
		{guest.PutEither, "/to/file", "/to/file"},
		{guest.PutEither, "/to/absent", "/to/absent"},
		{guest.PutInto, "/to/file", guest.CodeInvalid},
		{guest.PutInto, "/to/nothing/there", guest.CodeNotFound},
		{guest.PutAt, "/to/nothing/there", guest.CodeNotFound},
		{guest.PutAt, "/link/x", "/to/x"},
		{guest.PutAt, "/to/./y/../y", "/to/y"},
	} {
		target := announce(dir+"/from", dir+c.path)
		target.Where = c.where
		r, err := putTrees(t, receiver(t), guest.Put{Targets: []guest.PutTarget{target}}, dir+"/from")
		if c.want[0] != '/' {
			if code(err) != c.want {
				t.Errorf("%s %s: %v, want %s", c.where, c.path, err, c.want)
			}
			continue
		}
		if err != nil || string(r.Targets[0].Path) != dir+c.want || readFile(t, dir+c.want) != "new" {
			t.Errorf("%s %s: %+v, %v", c.where, c.path, r, err)
		}
	}
}

// A record that cannot be put ends that entry, and then nothing is replaced;
// what makes no sense ends the put. Both leave the old tree.
func TestHostileStreamsReplaceNothing(t *testing.T) {
	file := func(name string) []archive.Record {
		return []archive.Record{{Kind: archive.File, Name: name, Attr: filesystem.Attr{Mode: 0o100644, Size: 4}}, {Kind: archive.Data, Data: []byte("evil")}, {Kind: archive.End}}
	}
	enter := []archive.Record{{Kind: archive.Enter, Name: "tree"}}
	inner := []archive.Record{{Kind: archive.Enter, Name: "a"}}
	leave := []archive.Record{{Kind: archive.Leave, Attr: filesystem.Attr{Mode: 0o40755}}}
	finish := []archive.Record{{Kind: archive.Finish}}
	link := []archive.Record{{Kind: archive.Symlink, Name: "a", Target: "/", Attr: filesystem.Attr{Mode: 0o120777}}}
	linked := file("b")
	linked[0].Link = 3
	broken := append(file("c")[:2:2], archive.Record{Kind: archive.Broken})
	brokenLinked := append(linked[:2:2], archive.Record{Kind: archive.Broken}, archive.Record{Kind: archive.Link, Name: "z", Link: 3})
	huge := []archive.Record{{Kind: archive.File, Name: "h", Attr: filesystem.Attr{Mode: 0o100644, Size: 1<<63 - 1}}, {Kind: archive.Data, Offset: 1 << 62, Data: []byte("x")}, {Kind: archive.End}}
	var deep, many []archive.Record
	for range archive.MaxDepth - 1 {
		deep = append(deep, inner...)
	}
	for range archive.MaxDepth - 1 {
		deep = append(deep, leave...)
	}
	for range 40 {
		many = append(many, inner...)
		many = append(many, leave...)
	}
	join := func(lists ...[]archive.Record) (all []archive.Record) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	for name, c := range map[string]struct {
		records []archive.Record
		code    string // "": the put answers that it is not done
		lost    int64
	}{
		"two files of one name":          {join(enter, file("a"), file("a"), leave, finish), "", 1},
		"a file, then a folder":          {join(enter, file("a"), inner, file("x"), inner, leave, leave, file("b"), leave, finish), "", 1},
		"a link, then a folder":          {join(enter, link, inner, file("passwd"), leave, leave, finish), "", 1},
		"a folder, then a link":          {join(enter, inner, leave, link, leave, finish), "", 1},
		"a further name of what is lost": {join(enter, brokenLinked, leave, finish), "", 2},
		"a further name twice":           {join(enter, linked, []archive.Record{{Kind: archive.Link, Name: "b", Link: 3}}, leave, finish), "", 1},
		"a file that breaks off":         {join(enter, broken, leave, finish), "", 1},
		"lost on the host":               {join(enter, []archive.Record{{Kind: archive.Lost}}, leave, finish), "", 1},
		"all lost":                       {join([]archive.Record{{Kind: archive.Lost}}, finish), "", 1},
		"larger than any filesystem":     {join(enter, huge, leave, finish), "", 1},
		"deeper than a stream may be":    {join(enter, deep, inner), guest.CodeFailed, 0},
		"more entries than announced":    {join(enter, many, leave, finish), guest.CodeInvalid, 0},
		"a file instead of a folder":     {join(file("tree"), finish), guest.CodeInvalid, 0},
		"no tree":                        {finish, guest.CodeInvalid, 0},
		"two trees":                      {join(enter, leave, enter, leave, finish), guest.CodeInvalid, 0},
		"no finish":                      {join(enter, file("a"), leave), guest.CodeFailed, 0},
	} {
		dir := t.TempDir()
		writeFile(t, dir+"/to/tree/old", "old")
		before := list(t, dir+"/to/tree")
		target := guest.PutTarget{Path: []byte(dir + "/to/tree"), Where: guest.PutAt, Dir: true, Entries: 30, Bytes: 100}
		if strings.HasPrefix(name, "deeper") {
			target.Entries = 2000
		}
		r, err := putStream(t, receiver(t), guest.Put{Targets: []guest.PutTarget{target}}, func(w io.Writer) error {
			s := newSender(w)
			for _, rec := range c.records {
				s.put(rec)
			}
			_ = s.w.Flush() // a record that the writer refuses is the end
			return nil
		})
		switch {
		case c.code != "" && code(err) != c.code:
			t.Errorf("%s: %+v, %v, want code %s", name, r, err, c.code)
		case c.code == "" && (err != nil || r.Done || r.Reason == "" || r.Lost != c.lost):
			t.Errorf("%s: %+v, %v, want %d lost", name, r, err, c.lost)
		}
		same(t, list(t, dir+"/to/tree"), before)
		clean(t, dir+"/to")
	}
}

// A digest that is not that of what was written, as after a flipped bit on the
// way or on the disk.
func TestWhatIsReadBackIsCompared(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/to/tree/old", "old")
	writeFile(t, dir+"/tree/good", "good")
	writeFile(t, dir+"/tree/small", "small")
	writeFile(t, dir+"/tree/zlarge", strings.Repeat("0123456789abcdef", 40<<20/16)) // read back in pieces
	for _, bad := range []string{"small", "zlarge"} {
		target := announce(dir+"/tree", dir+"/to/tree")
		target.Bytes = 50 << 20
		r, err := putStream(t, receiver(t), guest.Put{Targets: []guest.PutTarget{target}}, func(w io.Writer) error {
			flip := &flipper{w: w, word: bad}
			if bad == "zlarge" {
				flip = &flipper{w: w, at: 20 << 20}
			}
			s := newSender(flip)
			s.tree(dir + "/tree")
			return s.finish()
		})
		if err != nil || r.Done || r.Lost != 1 || len(r.Failures) != 1 || !strings.HasSuffix(r.Failures[0].Path, bad) || r.Verified != 2 {
			t.Errorf("%s: %+v, %v", bad, r, err)
		}
		if readFile(t, dir+"/to/tree/old") != "old" {
			t.Error("the old tree is gone")
		}
		clean(t, dir+"/to")
	}
}

// flipper changes the byte at an offset of a stream, or the last byte of the
// last occurrence of a word.
type flipper struct {
	w    io.Writer
	word string
	at   int
}

func (f *flipper) Write(p []byte) (int, error) {
	q := bytes.Clone(p)
	i := f.at
	if f.word != "" {
		i = bytes.LastIndex(q, []byte(f.word)) + len(f.word) - 1
		f.word = ""
	}
	if i >= 0 && i < len(q) {
		q[i] ^= 1
	}
	f.at -= len(p)
	return f.w.Write(q)
}

// Filesystems differ in what they can keep, in direct I/O and in block sizes.
// What they keep is right, and what they cannot is said.
func TestPutOntoOtherFilesystems(t *testing.T) {
	ext4 := mounted(t, "ext4", 200, "-b", "4096", "-I", "256")
	awkward(t, ext4+"/tree")
	writeFile(t, ext4+"/plain/large", strings.Repeat("0123456789abcdef", 1<<17)+"end")
	writeFile(t, ext4+"/plain/small", "small")
	must(t, os.Lchown(ext4+"/plain/small", 5, 6))
	for _, c := range []struct {
		kind    string
		options []string
		keeps   bool
	}{
		{"btrfs", nil, true},
		{"ext4", []string{"-b", "1024", "-I", "256", "-O", "ea_inode"}, true},
		{"ext3", []string{"-I", "128"}, false}, // no nanoseconds
		{"tmpfs", nil, true},
	} {
		t.Run(c.kind, func(t *testing.T) {
			if _, err := exec.LookPath("mkfs." + c.kind); err != nil && c.kind != "tmpfs" {
				t.Skipf("mkfs.%s is not installed", c.kind)
			}
			var dir string
			if c.kind == "tmpfs" {
				dir = t.TempDir()
				run(t, "mount", "-t", "tmpfs", "none", dir)
				t.Cleanup(func() { run(t, "umount", dir) })
			} else {
				dir = mounted(t, c.kind, 400, c.options...)
			}
			r, err := putTrees(t, receiver(t), guest.Put{Targets: []guest.PutTarget{announce(ext4+"/plain", dir+"/plain")}}, ext4+"/plain")
			if err != nil || !r.Done || r.Verified != 2 || c.keeps != (len(r.Failures) == 0) {
				t.Fatalf("%+v, %v", r, err)
			}
			if readFile(t, dir+"/plain/large") != readFile(t, ext4+"/plain/large") {
				t.Error("the large file is wrong")
			}
			if !c.keeps {
				return
			}
			same(t, list(t, dir+"/plain"), list(t, ext4+"/plain"))
			r, err = putTrees(t, receiver(t), guest.Put{Targets: []guest.PutTarget{announce(ext4+"/tree", dir+"/tree")}}, ext4+"/tree")
			if err != nil || !r.Done || len(r.Failures) > 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			same(t, list(t, dir+"/tree"), list(t, ext4+"/tree"))
		})
	}
}
