package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// lifeCase is something that befalls a VM's disks between two backups.
type lifeCase struct {
	name  string
	disks []lab.Disk // two qcow2 disks if nil
	event func(*life)
	// hit gives, for each disk whose bitmaps cannot be trusted behind the
	// event, the words that its reason must have. The others stay incremental.
	hit map[string]string
}

// life is a case that runs.
type life struct {
	*bare
	h *host
	q lab.QEMU
}

const gone, inconsistent, chain = "is gone", "is inconsistent", "image files changed"

func lifeCases() []lifeCase {
	both := func(words string) map[string]string { return map[string]string{"vda": words, "vdb": words} }
	vda := func(words string) map[string]string { return map[string]string{"vda": words} }
	return []lifeCase{
		{name: "nothing", event: func(*life) {}},
		{name: "clean restart", event: func(l *life) { l.quit(); l.start(l.q) }},
		{name: "clean restart with a raw disk", event: func(l *life) { l.quit(); l.start(l.q) },
			disks: []lab.Disk{{ID: "vda", Format: "raw"}, {ID: "vdb", Format: "qcow2"}}, hit: vda("raw cannot keep bitmaps")},
		{name: "killed before the bitmap was first saved", event: func(l *life) { l.kill(); l.start(l.q) }, hit: both(gone)},
		{name: "killed when the bitmap had been saved", event: killedLater, hit: both(inconsistent)},
		{name: "clean shutdown in the middle of a backup", event: quitUnderBackup},
		{name: "killed in the middle of a backup", event: killedUnderBackup, hit: both(gone)},
		{name: "grown while running", event: func(l *life) {
			l.do("block_resize", map[string]any{"node-name": "vda", "size": 6 * mib})
			l.grown("vda", 6*mib)
		}, hit: vda("size changed from 4194304 to 6291456")},
		{name: "grown while off", event: func(l *life) {
			l.quit()
			qemuImg(l.t, "resize", "-q", "-f", "qcow2", l.disk("vda").Path, "6M")
			l.grown("vda", 6*mib)
			l.start(l.q)
		}, hit: vda("size changed")},
		{name: "external snapshot", event: func(l *life) { l.snapshot("vda") }, hit: vda(chain)},
		{name: "external snapshot and block-commit", event: func(l *life) {
			l.snapshot("vda")
			l.scatter(5)
			l.commit("vda")
		}},
		{name: "reverted to an internal snapshot while off", event: reverted, hit: vda(gone)},
		{name: "reverted to an internal snapshot while running", event: revertedLive, hit: both(gone)},
		{name: "eight backups killed while they read", event: eightKilled},
		{name: "replaced by another image", event: func(l *life) {
			l.quit()
			l.replaceByBlank("vda", l.disk("vda").Path)
			l.start(l.q)
		}, hit: vda("the image is another one")},
		{name: "replaced by an image of another name", event: func(l *life) {
			l.quit()
			l.replaceByBlank("vda", filepath.Join(l.dir, "other.qcow2"))
			l.start(l.q)
		}, hit: vda(chain)},
		{name: "replaced by the image of another VM", event: replacedByOtherVM, hit: vda("the image is another one")},
		{name: "replaced by an older copy of itself", event: replacedByOldCopy, hit: vda("the image is another one")},
		{name: "bitmap removed by hand", event: func(l *life) {
			l.do("block-dirty-bitmap-remove", map[string]any{"node": "vda", "name": l.newestBitmap("vda")})
		}, hit: vda("somebody removed it")},
		{name: "bitmap disabled by hand", event: func(l *life) {
			l.do("block-dirty-bitmap-disable", map[string]any{"node": "vda", "name": l.newestBitmap("vda")})
		}, hit: vda("does not record")},
		{name: "all removed by vm bitmaps", event: func(l *life) {
			l.h.run(l.t, exitOK, "vm", "bitmaps", vmName, "--remove")
		}, hit: both(gone)},
		{name: "an inconsistent bitmap blocks the next name", event: nameBlocked, hit: vda(inconsistent)},
	}
}

// TestBitmapLifeCycle: whatever befalls the disks between two backups, the
// next point equals them byte for byte, says for each disk why it read what it
// read, and reads only those whole that were hit. The run after it is
// incremental again, and no run warns: one fallback is no fault. The QEMUs take
// turns; with CAIRN_LONG=1, or if there is one alone, each has all cases.
func TestBitmapLifeCycle(t *testing.T) {
	old := labtest.Installed(t)
	_, err := lab.BackportsQEMU(t.Context(), t.Output())
	all := labtest.Long() || err != nil // EachQEMU tells it
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		for i, c := range lifeCases() {
			if !all && (i%2 == 0) != (q == old) {
				continue // the other's turn
			}
			t.Run(c.name, func(t *testing.T) {
				disks := c.disks
				if disks == nil {
					disks = twoDisks()
				}
				h := newHost(t)
				l := &life{bare: startBare(t, h, q, disks...), h: h, q: q}
				l.scatter(0)
				h.backup(t)
				l.scatter(1)
				h.backup(t)
				l.scatter(2)
				c.event(l)
				l.scatter(3)
				// Without the audit, which would find a bitmap that lies in so
				// small a disk: it must not be needed.
				s := l.backup(h, "--audit", "0")
				l.wasRead(s, c.hit)
				l.scatter(4)
				if s := l.backup(h); s.Read != "incremental" || len(s.Warnings) > 0 {
					t.Errorf("the run behind it: %+v", s)
				}
			})
		}
	})
}

// wasRead fails the test if a point's disks were read in another way than
// hit says.
func (l *life) wasRead(s summary, hit map[string]string) {
	l.t.Helper()
	if len(s.Warnings) > 0 || s.Wrong > 0 {
		l.t.Errorf("it warned: %q, %d chunks wrong", s.Warnings, s.Wrong)
	}
	reads := readsOf(l.t, l.h, s)
	for _, d := range l.disks {
		r, words := reads[d.ID], hit[d.ID]
		want := "incremental"
		if words != "" {
			want = "full"
		}
		if r.Read != want || !strings.Contains(r.Reason, words) || !strings.HasPrefix(r.Reason, want) {
			l.t.Errorf("disk %s: %s: %s; want %s with %q", d.ID, r.Read, r.Reason, want, words)
		}
		if words != "" && !strings.Contains(s.Reason, words) {
			l.t.Errorf("the run's reason does not say %q: %s", words, s.Reason)
		}
	}
}

// killedLater kills QEMU in the session after the one that made the bitmap.
func killedLater(l *life) {
	l.quit()
	l.start(l.q)
	l.scatter(6)
	l.kill()
	l.start(l.q)
}

// underBackup starts a full read that takes seconds, waits until it reads, and
// does what is to happen to QEMU; the backup must fail in words.
func (l *life) underBackup(what func()) {
	l.t.Helper()
	for off := int64(0); off < bareSize; off += mib {
		l.write("vda", off, mib)
	}
	r := l.h.start(l.t, "backup", vmName, "--full-read", "--read-limit", "1MiB")
	if !l.h.awaitStep(l.t, r, "read") {
		l.t.Fatalf("the backup ended before it read: %+v", r.wait())
	}
	l.scatter(7)
	time.Sleep(300 * time.Millisecond) // some is read
	what()
	got := r.wait()
	if got.code != exitFailed {
		l.t.Errorf("QEMU ended under the backup: exit code %d\n%s", got.code, got.stderr)
	}
	got.mentions(l.t, "shut down", "QEMU", "connection")
	l.start(l.q)
}

func quitUnderBackup(l *life) {
	l.underBackup(l.quit)
}

func killedUnderBackup(l *life) {
	l.underBackup(l.kill)
}

// grown notes that a disk has grown by zeros.
func (l *life) grown(id string, size int64) {
	l.written[id] = append(l.written[id], make([]byte, size-int64(len(l.written[id])))...)
}

// snapshot puts an overlay on a disk's image, live.
func (l *life) snapshot(id string) {
	l.t.Helper()
	overlay := filepath.Join(l.dir, id+"-overlay.qcow2")
	l.do("blockdev-snapshot-sync", map[string]any{"node-name": id, "snapshot-file": overlay, "format": "qcow2", "snapshot-node-name": id + "-overlay"})
	l.disk(id).Path = overlay
}

// commit writes the overlay back into its base and takes it out, live.
func (l *life) commit(id string) {
	l.t.Helper()
	l.do("block-commit", map[string]any{"device": id + "-overlay", "job-id": "commit"})
	if _, err := l.WaitEvent(l.t.Context(), "BLOCK_JOB_READY"); err != nil {
		l.t.Fatal(err)
	}
	l.do("block-job-complete", map[string]any{"device": "commit"})
	if _, err := l.WaitEvent(l.t.Context(), "BLOCK_JOB_COMPLETED"); err != nil {
		l.t.Fatal(err)
	}
	l.disk(id).Path = filepath.Join(l.dir, id+".qcow2")
	if _, err := os.Stat(l.disk(id).Path); err != nil { // made in another folder
		l.t.Fatal(err)
	}
}

// reverted is what an administrator does who wants an internal snapshot back:
// qemu-img refuses it while bitmaps of ours are there, and our command removes
// them.
func reverted(l *life) {
	l.quit()
	image := l.disk("vda").Path
	qemuImg(l.t, "snapshot", "-q", "-c", "before", image)
	before := append([]byte{}, l.written["vda"]...)
	l.start(l.q)
	l.scatter(8)
	l.backup(l.h)
	l.scatter(9)
	l.quit()
	out, err := tryQemuImg(l.t, "snapshot", "-q", "-a", "before", image)
	if err == nil {
		l.t.Error("qemu-img reverts an image with bitmaps: the next incremental would be wrong, if it trusted them")
	}
	l.t.Logf("qemu-img snapshot -a with bitmaps: %s", out)
	l.h.run(l.t, exitOK, "vm", "bitmaps", "--image", image).mentions(l.t, "recording")
	l.h.run(l.t, exitOK, "vm", "bitmaps", "--image", image, "--remove").mentions(l.t, "removed cairn-")
	qemuImg(l.t, "snapshot", "-q", "-a", "before", image)
	l.written["vda"] = before
	l.start(l.q)
}

// revertedLive is the same by HMP's savevm and loadvm, which take all disks.
func revertedLive(l *life) {
	l.h.run(l.t, exitOK, "vm", "bitmaps", vmName, "--remove")
	l.hmp("savevm before")
	before := map[string][]byte{}
	for id, data := range l.written {
		before[id] = append([]byte{}, data...)
	}
	l.backup(l.h)
	l.scatter(8)
	l.backup(l.h)
	l.scatter(9)
	if said := l.tryHMP("loadvm before"); !strings.Contains(said, "dirty bitmaps") {
		l.t.Errorf("loadvm with bitmaps says %q", said)
	}
	l.h.run(l.t, exitOK, "vm", "bitmaps", vmName, "--remove")
	l.hmp("loadvm before")
	l.written = before
}

// eightKilled leaves the bitmaps of eight attempts that read and were killed:
// the next run folds and merges them all.
func eightKilled(l *life) {
	for i := range 8 {
		l.scatter(10 + i)
		r := l.h.start(l.t, "backup", vmName, "--read-limit", "64KiB")
		if !l.h.awaitStep(l.t, r, "read") {
			l.t.Fatalf("the backup ended before it read: %+v", r.wait())
		}
		r.signal(l.t, syscall.SIGKILL)
		got := r.wait()
		if got.code != -1 {
			l.t.Errorf("the backup was not killed, it ended with %d", got.code)
		}
		if strings.Contains(got.stderr, "agent does not answer") {
			l.t.Fatalf("it asked an agent that is not there whether the dead run's freeze is undone: %s", got.stderr)
		}
	}
	names := slices.DeleteFunc(bitmaps(l.t, l.Guest)["vda"], func(n string) bool { return n == "" || strings.HasSuffix(n, "-merged") })
	if len(names) < 9 {
		l.t.Errorf("only %q piled up: this case does not test what it says", names)
	}
}

// replaceByBlank puts an empty image in a disk's place.
func (l *life) replaceByBlank(id, path string) {
	l.t.Helper()
	qemuImg(l.t, "create", "-q", "-f", "qcow2", path, "4M")
	l.disk(id).Path = path
	l.written[id] = make([]byte, bareSize)
}

// replacedByOtherVM puts in a disk's place that of another VM in the same
// repository, backed up as often: its bitmaps record since the last point, but
// of the other VM.
func replacedByOtherVM(l *life) {
	l.t.Helper()
	other := startBare(l.t, l.h, l.q, twoDisks()...)
	l.h.run(l.t, exitOK, "vm", "add", "web02", "--qmp", other.QMPSocket)
	l.h.run(l.t, exitOK, "vm", "add", vmName, "--qmp", l.QMPSocket, "--replace")
	other.random.Seed([32]byte{2})
	for turn := range 2 {
		other.scatter(turn)
		l.h.run(l.t, exitOK, "backup", "web02")
	}
	other.quit()
	l.quit()
	if err := os.Rename(other.disk("vda").Path, l.disk("vda").Path); err != nil {
		l.t.Fatal(err)
	}
	l.written["vda"] = other.written["vda"]
	l.start(l.q)
}

// replacedByOldCopy brings back a copy of the image, with its bitmaps, from
// before the last backup: those of then say nothing about the last point.
func replacedByOldCopy(l *life) {
	l.quit()
	image := l.disk("vda").Path
	old, err := os.ReadFile(image)
	if err != nil {
		l.t.Fatal(err)
	}
	before := append([]byte{}, l.written["vda"]...)
	l.start(l.q)
	l.scatter(8)
	l.backup(l.h)
	l.quit()
	if err := os.WriteFile(image, old, 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.written["vda"] = before
	l.start(l.q)
}

// newestBitmap gives the name of the bitmap that records a disk's changes.
func (l *life) newestBitmap(disk string) string {
	l.t.Helper()
	var list struct {
		Bitmaps []struct {
			Disk, Name, State string
		} `json:"bitmaps"`
	}
	l.h.run(l.t, exitOK, "vm", "bitmaps", vmName, "--json").decode(l.t, &list)
	for _, b := range list.Bitmaps {
		if b.Disk == disk && b.State == "recording" {
			return b.Name
		}
	}
	l.t.Fatalf("no bitmap of disk %s records: %+v", disk, list)
	return ""
}

// nameBlocked leaves in one image an inconsistent bitmap that has the name
// which the next attempt would take: QEMU refuses another one of that name,
// and can do nothing with this one but remove it.
func nameBlocked(l *life) {
	next := nextName(l.t, l.newestBitmap("vda"))
	l.quit()
	image := l.disk("vda").Path
	qemuImg(l.t, "bitmap", "--add", "-f", "qcow2", "-g", "65536", image, next)
	disks := l.disks
	l.disks = disks[:1] // a QEMU that has only this image, and is killed
	l.start(l.q)
	l.write("vda", 0, 4096)
	l.kill()
	l.disks = disks
	if out := qemuImg(l.t, "info", image); !strings.Contains(out, "in-use") || !strings.Contains(out, next) {
		l.t.Fatalf("no inconsistent bitmap %s was made: %s", next, out)
	}
	l.start(l.q)
}

// nextName gives the name of the bitmap of the attempt behind a bitmap's.
func nextName(t *testing.T, name string) string {
	t.Helper()
	at := strings.LastIndexByte(name, '-') + 1
	digits := []byte(name[at:])
	for i := len(digits) - 1; ; i-- {
		if i < 0 {
			return name[:at] + "1" + string(digits)
		}
		if digits[i] < '9' {
			digits[i]++
			return name[:at] + string(digits)
		}
		digits[i] = '0'
	}
}

// TestTwoRepositories: two repositories back up one VM in turn. Each keeps its
// own increments, whatever the other does.
func TestTwoRepositories(t *testing.T) {
	labtest.NewerQEMU(t, func(t *testing.T, q lab.QEMU) {
		one := newHost(t)
		v := startBare(t, one, q, twoDisks()...)
		two := *one // the same host, another repository
		two.dir, two.repo, two.key = shortDir(t), filepath.Join(one.dir, "repo2"), one.passphraseFile()
		two.init(t)
		a, b := &life{bare: v, h: one, q: q}, &life{bare: v, h: &two, q: q}
		v.scatter(0)
		v.backup(one)
		v.scatter(1)
		v.backup(&two)
		for turn, l := range []*life{a, b, b, a, a, b} {
			v.scatter(2 + turn)
			if turn == 3 { // both survive a clean restart
				v.quit()
				v.start(q)
			}
			l.wasRead(l.backup(l.h), nil)
		}
		// One leaves: the other's bitmaps stay.
		one.run(t, exitOK, "vm", "bitmaps", vmName, "--remove")
		v.scatter(9)
		b.wasRead(v.backup(&two), nil)
		v.scatter(10)
		a.wasRead(v.backup(one), map[string]string{"vda": gone, "vdb": gone})
		v.scatter(11)
		a.wasRead(v.backup(one), nil)
	})
}

// TestTwoFallbacks: a disk that is read whole twice in a row raises a warning
// that names it, both reasons, and what to do; the run after it is silent.
func TestTwoFallbacks(t *testing.T) {
	labtest.NewerQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := startBare(t, h, q, lab.Disk{ID: "vda", Format: "raw"}, lab.Disk{ID: "vdb", Format: "qcow2"})
		l := &life{bare: v, h: h, q: q}
		restarted := func() {
			v.scatter(1)
			v.quit()
			v.start(q)
		}
		v.scatter(0)
		v.backup(h)
		restarted()
		l.wasRead(v.backup(h), map[string]string{"vda": "raw"}) // once: no warning
		restarted()
		s := h.backupExit(t, exitWarnings)
		v.isRestored(h, s)
		if len(s.Warnings) != 1 {
			t.Fatalf("warnings: %q", s.Warnings)
		}
		for _, words := range []string{"disk vda", "second time in a row", "raw", "cairn doctor " + vmName} {
			if !strings.Contains(s.Warnings[0], words) {
				t.Errorf("the warning does not say %q: %s", words, s.Warnings[0])
			}
		}
		v.scatter(2)
		l.wasRead(v.backup(h), nil)
		if s := v.backup(h, "--full-read"); len(s.Warnings) > 0 {
			t.Errorf("a full read that was asked for warns: %q", s.Warnings)
		}
		if s := v.backup(h, "--full-read"); len(s.Warnings) > 0 {
			t.Errorf("the second full read that was asked for warns: %q", s.Warnings)
		}
	})
}

// TestBitmapsCommand: what `cairn vm bitmaps` lists and refuses.
func TestBitmapsCommand(t *testing.T) {
	h := newHost(t)
	v := startBare(t, h, labtest.Installed(t), twoDisks()...)
	h.run(t, exitOK, "vm", "bitmaps", vmName).mentions(t, "no bitmaps")
	v.scatter(0)
	v.backup(h)
	v.do("block-dirty-bitmap-add", map[string]any{"node": "vda", "name": "somebody-elses"})
	v.write("vda", 0, 128<<10)
	r := h.run(t, exitOK, "vm", "bitmaps", vmName)
	r.mentions(t, "128 KiB")
	if strings.Contains(r.stdout, "somebody-elses") || strings.Count(r.stdout, "recording") != 2 {
		t.Errorf("listed:\n%s", r.stdout)
	}
	h.run(t, exitUsage, "vm", "bitmaps")
	h.run(t, exitUsage, "vm", "bitmaps", vmName, "--image", v.disk("vda").Path)
	h.run(t, exitUsage, "vm", "bitmaps", vmName, "--disk", "vdz")
	h.run(t, exitUsage, "vm", "bitmaps", vmName, "--remove", "-r", "")
	h.run(t, exitNoRepository, "vm", "bitmaps", vmName, "--remove", "-r", h.dir)
	h.run(t, exitFailed, "vm", "bitmaps", "--image", v.disk("vda").Path, "--remove", "--all") // QEMU has it open

	h.run(t, exitOK, "vm", "bitmaps", vmName, "--remove", "--disk", "vda").mentions(t, "of vda")
	if left := bitmaps(t, v.Guest); len(left["vda"]) != 1 || len(left["vdb"]) != 1 {
		t.Errorf("left: %q", left)
	}
	h.run(t, exitOK, "vm", "bitmaps", vmName, "--remove", "--all", "-r", "").mentions(t, "of vdb")
	if left := bitmaps(t, v.Guest); len(left["vda"]) != 1 || len(left["vdb"]) != 0 {
		t.Errorf("left: %q", left)
	}

	// Not while a backup is at work, even one that does not answer.
	v.write("vda", 0, mib)
	r2 := h.start(t, "backup", vmName, "--read-limit", "256KiB")
	if !h.awaitStep(t, r2, "read") {
		t.Fatalf("the backup ended before it read: %+v", r2.wait())
	}
	h.run(t, exitFailed, "vm", "bitmaps", vmName, "--remove").mentions(t, "another")
	r2.signal(t, syscall.SIGTERM)
	r2.wait()

	v.quit()
	h.run(t, exitFailed, "vm", "bitmaps", vmName).mentions(t, "is off")
}
