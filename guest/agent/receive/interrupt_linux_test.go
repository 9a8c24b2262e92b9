package receive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/archive"
)

// pair makes an old tree at to/tree and a new one at from/tree, and gives the
// put of one to the other, with a description of both.
func pair(t *testing.T, dir string) (p guest.Put, old, new []string) {
	t.Helper()
	for i := range 12 {
		writeFile(t, fmt.Sprintf("%s/to/tree/old-%d/file", dir, i), "old")
		writeFile(t, fmt.Sprintf("%s/from/tree/new-%d/file", dir, i), strings.Repeat("new", 1000*i))
		must(t, os.Link(fmt.Sprintf("%s/from/tree/new-%d/file", dir, i), fmt.Sprintf("%s/from/tree/new-%d/link", dir, i)))
	}
	return guest.Put{Targets: []guest.PutTarget{announce(dir+"/from/tree", dir+"/to/tree")}}, list(t, dir+"/to/tree"), list(t, dir+"/from/tree")
}

// The host is gone after any part of the stream.
func TestHostGoneAtAnyTime(t *testing.T) {
	dir := t.TempDir()
	p, old, _ := pair(t, dir)
	var whole bytes.Buffer
	s := newSender(&whole)
	s.tree(dir + "/from/tree")
	must(t, s.finish())
	r := receiver(t)
	for n := 0; n < whole.Len(); n += 1 + whole.Len()/97 {
		_, err := r.Put(t.Context(), p, bytes.NewReader(whole.Bytes()[:n]))
		if code(err) != guest.CodeFailed || !strings.Contains(err.Error(), "before the end") {
			t.Fatalf("after %d of %d bytes: %v", n, whole.Len(), err)
		}
		same(t, list(t, dir+"/to/tree"), old)
		clean(t, dir+"/to")
	}
	noJournal(t, r)
}

func noJournal(t *testing.T, r *Receiver) {
	t.Helper()
	if left, _ := filepath.Glob(r.state + "/*"); len(left) > 0 {
		t.Errorf("left in the agent's state: %v", left)
	}
}

// A session that ends, or a deadline that passes, ends the put also while the
// host sends nothing.
func TestPutEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	p, old, _ := pair(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	in, out := io.Pipe()
	go func() {
		s := newSender(out)
		s.put(archive.Record{Kind: archive.Enter, Name: "tree"})
		_ = s.w.Flush()
		<-ctx.Done()
		out.CloseWithError(ctx.Err()) // as the session's stream does
	}()
	if _, err := receiver(t).Put(ctx, p, in); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	same(t, list(t, dir+"/to/tree"), old)
	clean(t, dir+"/to")
}

// killedEnv makes this test's program a receiver that is killed.
const killedEnv = "CAIRN_TEST_RECEIVE"

// TestMain lets TestAgentKilled start a receiver in a process of its own. Its
// stdin is the stream.
func TestMain(m *testing.M) {
	if dir := os.Getenv(killedEnv); dir != "" {
		p := guest.Put{Targets: []guest.PutTarget{announce(dir+"/from/tree", dir+"/to/tree"), announce(dir+"/from/tree", dir+"/too/tree")}}
		if _, err := New(dir+"/state").Put(context.Background(), p, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The agent is killed at many moments of a put of two targets: then either both
// are new, or both as they were, once the agent has started again; and nothing
// is left beside them.
func TestAgentKilled(t *testing.T) {
	dir := t.TempDir()
	_, old, new := pair(t, dir)
	must(t, exec.Command("cp", "-a", dir+"/to", dir+"/too").Run())
	must(t, exec.Command("cp", "-a", dir+"/to", dir+"/keep").Run())
	var whole bytes.Buffer
	s := newSender(&whole)
	s.tree(dir + "/from/tree")
	s.next()
	s.tree(dir + "/from/tree")
	must(t, s.finish())
	took := time.Hour
	for range 3 {
		start := time.Now()
		killed(t, dir, whole.Bytes(), time.Hour)
		took = min(took, time.Since(start))
	}
	same(t, list(t, dir+"/too/tree"), new)
	done, undone := 0, 0
	for i := range 60 {
		for _, name := range []string{"to", "too"} {
			must(t, os.RemoveAll(dir+"/"+name+"/tree"))
			must(t, exec.Command("cp", "-a", dir+"/keep/tree", dir+"/"+name+"/").Run())
		}
		after := took * time.Duration(i) / 45
		if i == 0 {
			after = time.Hour // one that is not killed, however busy this machine is
		}
		killed(t, dir, whole.Bytes(), after)
		notes := New(dir + "/state").Recover(t.Context())
		for _, n := range notes {
			if !strings.Contains(n, "removed") {
				t.Errorf("killed at %d: %s", i, n)
			}
		}
		clean(t, dir+"/to", dir+"/too")
		noJournal(t, New(dir+"/state"))
		want := old
		if _, err := os.Lstat(dir + "/to/tree/new-0"); err == nil {
			want = new
			done++
		} else {
			undone++
		}
		same(t, list(t, dir+"/to/tree"), want)
		same(t, list(t, dir+"/too/tree"), want)
	}
	t.Logf("a whole put takes %v; of those killed %d were done, %d undone", took, done, undone)
	if undone == 0 || done == 0 {
		t.Error("all ended in one way: the test shows little")
	}
}

// killed runs a receiver and kills it after some time.
func killed(t *testing.T, dir string, stream []byte, after time.Duration) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), killedEnv+"="+dir)
	c.Stdin = bytes.NewReader(stream)
	var errs bytes.Buffer
	c.Stderr = &errs
	must(t, c.Start())
	timer := time.AfterFunc(after, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	if err := c.Wait(); err != nil && err.Error() != "signal: killed" && !strings.Contains(err.Error(), "broken pipe") {
		t.Fatalf("%v: %s", err, errs.String())
	}
}

// What the agent's next start does for each state in which it may have died
// while it exchanged.
func TestRecoverFromEachState(t *testing.T) {
	for _, c := range []struct {
		state     string
		exchanged int // targets
		new       bool
	}{{staging, 0, false}, {exchanging, 0, false}, {exchanging, 1, false}, {exchanging, 2, true}, {done, 2, true}} {
		dir := t.TempDir()
		writeFile(t, dir+"/to/a", "old")
		must(t, os.Mkdir(dir+"/too", 0o755)) // nothing is at too/b
		r := receiver(t)
		p := &guest.Put{Targets: []guest.PutTarget{announce(dir, dir+"/to/a"), announce(dir, dir+"/too/b")}}
		places, err := findAll(p, nil)
		must(t, err)
		j, err := newJournal(r.state, places)
		must(t, err)
		for i, at := range places {
			s, err := newStage(at, j.Places[i].Stage)
			must(t, err)
			writeFile(t, s.path()+"/"+newName, "new")
			j.Places[i].New, err = inode(s.dir, newName)
			must(t, err)
			if i < c.exchanged {
				must(t, s.exchange(false))
			}
			s.close()
			at.close()
		}
		j.State = c.state
		must(t, j.write())
		writeFile(t, r.state+"/put-torn.tmp", "{")
		if notes := r.Recover(t.Context()); len(notes) != 1 {
			t.Errorf("%+v: notes %q", c, notes)
		}
		clean(t, dir+"/to", dir+"/too")
		noJournal(t, r)
		want := "old"
		if c.new {
			want = "new"
		}
		if got := readFile(t, dir+"/to/a"); got != want {
			t.Errorf("%+v: holds %q, want %q", c, got, want)
		}
		if _, err := os.Lstat(dir + "/too/b"); (err == nil) != c.new {
			t.Errorf("%+v: the second target: %v", c, err)
		}
	}
}

// When the second of two targets cannot be exchanged the first is taken back.
func TestAllTargetsOrNone(t *testing.T) {
	ext4 := mounted(t, "ext4", 64)
	writeFile(t, ext4+"/from/tree/f", "new")
	for _, name := range []string{"a", "b", "c"} {
		writeFile(t, ext4+"/to-"+name+"/tree/f", "old")
	}
	must(t, os.Remove(ext4+"/to-b/tree/f"))
	must(t, os.Remove(ext4+"/to-b/tree")) // nothing was there
	var p guest.Put
	for _, name := range []string{"a", "b", "c"} {
		p.Targets = append(p.Targets, announce(ext4+"/from/tree", ext4+"/to-"+name+"/tree"))
	}
	p.Targets[0].Bytes, p.Targets[1].Bytes, p.Targets[2].Bytes = 1000, 1000, 1000
	r := receiver(t)
	_, err := putStream(t, r, p, func(w io.Writer) error {
		s := newSender(w)
		for range 3 {
			s.tree(ext4 + "/from/tree")
		}
		if err := s.w.Flush(); err != nil {
			return err
		}
		run(t, "mount", "--bind", ext4+"/from", ext4+"/to-c/tree") // it cannot be renamed any more
		return s.finish()
	})
	run(t, "umount", ext4+"/to-c/tree")
	if code(err) != guest.CodeBusy {
		t.Errorf("%v", err)
	}
	if readFile(t, ext4+"/to-a/tree/f") != "old" || readFile(t, ext4+"/to-c/tree/f") != "old" {
		t.Error("a target was left exchanged")
	}
	if _, err := os.Lstat(ext4 + "/to-b/tree"); err == nil {
		t.Error("a target that was not there was left")
	}
	clean(t, ext4+"/to-a", ext4+"/to-b", ext4+"/to-c")
	noJournal(t, r)
}

// What was replaced cannot be removed: it is said where it is, and the put is
// done.
func TestOldTreeThatCannotBeRemoved(t *testing.T) {
	ext4 := mounted(t, "ext4", 64)
	writeFile(t, ext4+"/from/tree/f", "new")
	writeFile(t, ext4+"/to/tree/f", "old")
	setFlags(t, ext4+"/to/tree/f", 0x10) // FS_IMMUTABLE_FL
	p := guest.Put{Targets: []guest.PutTarget{announce(ext4+"/from/tree", ext4+"/to/tree")}}
	p.Targets[0].Bytes, p.Targets[0].Entries = 1000, 10
	rc := receiver(t)
	r, err := putTrees(t, rc, p, ext4+"/from/tree")
	if err != nil || !r.Done || len(r.Failures) != 1 || len(r.Targets[0].Left) == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if readFile(t, ext4+"/to/tree/f") != "new" || readFile(t, string(r.Targets[0].Left)+"/new/f") != "old" {
		t.Error("the trees are not where they should be")
	}
	setFlags(t, string(r.Targets[0].Left)+"/new/f", 0)
	noJournal(t, rc)
}

func setFlags(t *testing.T, name string, flags uint32) {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags)))
}
