package integration

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
	"cairn/integration/lab/ledger"
)

const (
	ledgerSize   = 64 * mib // of each of its disks
	scribePause  = time.Millisecond
	backupsShort = 9
	backupsLong  = 100
	// maxBitmaps is what there may ever be on a disk: those that may pile up
	// (package qmp folds them then), the parent's, and the new one.
	maxBitmaps = 10
)

// ledgerDisks are the disks that the ledger is written to, in its order: one
// that keeps bitmaps over a restart and one that does not.
var ledgerDisks = []string{"vdc", "vdd"}

// TestCampaign backs up a guest that writes all the time, again and again, and
// kills a fifth of the runs at a random instant: cairn, QEMU, or both at once.
// Every point that was committed, also by a run that was killed behind that,
// must hold what the guest's ledger was at one instant of its run; at the end,
// with the VM stopped, the last point must hold the disks byte by byte.
//
// CAIRN_LONG=1 makes a hundred backups with each way of reading and each QEMU;
// else there are nine, of a VM that has both ways: one of the ledger's disks is
// on an iothread, which the installed QEMU must push. CAIRN_CAMPAIGN_SEED
// repeats one.
func TestCampaign(t *testing.T) {
	if !labtest.Long() {
		runCampaign(t, labtest.Installed(t), backupsShort, "vdd")
		return
	}
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		t.Run("plain", func(t *testing.T) { runCampaign(t, q, backupsLong) })
		t.Run("iothread", func(t *testing.T) { runCampaign(t, q, backupsLong, ledgerDisks...) })
		t.Run("mixed", func(t *testing.T) { runCampaign(t, q, backupsLong, "vdd") })
	})
}

// campaign is one VM's story.
type campaign struct {
	t      *testing.T
	h      *host
	g      *lab.Guest
	disks  []lab.Disk
	layout ledger.Layout
	rnd    *rand.Rand

	took      time.Duration // of the last run that was not killed
	dead      int           // runs that were killed since the last point
	lost      int           // times that QEMU was killed, also when the run ended well: it may find the VM off
	committed []string      // IDs of the points, oldest first
	last      uint64        // number of the ledger's write in the newest point
	hits      map[string]int
}

// runCampaign makes n backups; threads are the disks that are on an iothread.
func runCampaign(t *testing.T, q lab.QEMU, n int, threads ...string) {
	c := newCampaign(t, q, threads)
	c.run("") // full, and the measure of how long a run takes
	c.run("")
	killed := c.killPlan(n - 2)
	for i, victim := range killed {
		// A kill that came too late is tried again, in a run more.
		for tries := 0; !c.run(victim) && tries < 4; tries++ {
		}
		if t.Failed() {
			t.Fatalf("backup %d of %d (victim: %q)", i+3, n, victim)
		}
	}
	if c.dead > 0 {
		c.run("") // what the last one left is cleaned up
	}
	c.end()
	t.Logf("%d backups, %d points, killed: %v; the ledger ended at write %d", n, len(c.committed), c.hits, c.last)
}

// seed gives the campaign's, which the log shows.
func seed(t *testing.T) uint64 {
	s := uint64(time.Now().UnixNano()) % 1e9
	if text := os.Getenv("CAIRN_CAMPAIGN_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CAIRN_CAMPAIGN_SEED: %v", err)
		}
	}
	t.Logf("CAIRN_CAMPAIGN_SEED=%d", s)
	return s
}

func newCampaign(t *testing.T, q lab.QEMU, threads []string) *campaign {
	t.Helper()
	c := &campaign{t: t, rnd: rand.New(rand.NewPCG(seed(t), 1)), hits: map[string]int{}}
	var err error
	if c.layout, err = ledger.NewLayout(len(ledgerDisks), ledgerSize); err != nil {
		t.Fatal(err)
	}
	c.g = labtest.Start(t, func(o *lab.Options) {
		o.QEMU, o.Inject = q.Program, map[string]string{"scribe": buildScribe(t)}
		for i, id := range ledgerDisks {
			d := lab.Disk{ID: id, Format: []string{"qcow2", "raw"}[i], IOThread: slices.Contains(threads, id), Path: filepath.Join(o.Dir, id+".img")}
			// Allocated, as package ledger asks for.
			args := []string{"create", "-q", "-f", d.Format, d.Path, strconv.Itoa(ledgerSize)}
			if d.Format == "qcow2" {
				args = slices.Insert(args, 2, "-o", "preallocation=metadata")
			}
			qemuImg(t, args...)
			o.Disks = append(o.Disks, d)
		}
		c.disks = o.Disks
	})
	awaitAgent(t, c.g, true)
	c.h = newHost(t)
	c.h.run(t, exitOK, "vm", "add", vmName, "--qmp", c.g.QMPSocket, "--replace")
	c.write()
	return c
}

// buildScribe builds the program that writes the ledger in the guest.
func buildScribe(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "scribe")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "cairn/integration/lab/ledger/scribe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building scribe: %v\n%s", err, out)
	}
	return program
}

// write lets the guest write: the ledger to its raw disks, and files to its
// filesystems. It comes back when the ledger grows.
func (c *campaign) write() {
	c.t.Helper()
	labtest.Shell(c.t, c.g, fmt.Sprintf("/run/inject/scribe -pause %v -progress /run/ledger /dev/%s >/run/scribe.log 2>&1 </dev/null &",
		scribePause, strings.Join(ledgerDisks, " /dev/")))
	startWriter(c.t, c.g)
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if out, err := c.g.Shell(c.t.Context(), "cat /run/ledger"); err == nil && strings.TrimSpace(out) != "" {
			return
		}
		if time.Since(start) > answerTime {
			c.t.Fatalf("the ledger does not grow: %s", labtest.Shell(c.t, c.g, "cat /run/scribe.log"))
		}
	}
}

// progress gives the last of the ledger's writes that has ended.
func (c *campaign) progress() uint64 {
	c.t.Helper()
	out := labtest.Shell(c.t, c.g, "cat /run/scribe.log /run/ledger")
	n, err := strconv.ParseUint(strings.TrimLeft(strings.TrimSpace(out), "0"), 10, 64)
	if err != nil {
		c.t.Fatalf("the ledger's writer says: %s", out)
	}
	return n
}

// killPlan says for each of n runs what is killed in it: one in five, in a
// random order, "" for none. Two in five of those lose QEMU.
func (c *campaign) killPlan(n int) []string {
	plan := make([]string, n)
	kinds := []string{"cairn", "QEMU", "cairn", "both", "cairn"}
	for i := range (n + 4) / 5 {
		plan[i] = kinds[i%len(kinds)]
	}
	c.rnd.Shuffle(n, func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	return plan
}

// run makes one backup, kills what is to be killed at a random instant of it,
// and checks what is there then. It is false if the kill came too late.
func (c *campaign) run(victim string) (hit bool) {
	c.t.Helper()
	earliest := c.progress()
	args := []string{"backup", vmName, "--json"}
	start := time.Now()
	r := c.h.start(c.t, args...)
	if victim != "" {
		c.kill(r, victim, time.Duration(c.rnd.Int64N(int64(c.took))))
	}
	got := r.wait()
	if got.code == exitFailed && (victim == "" || victim == "cairn") {
		c.diagnose(got)
	}
	switch {
	case victim == "":
		c.took = time.Since(start)
		if got.code != exitOK && got.code != exitWarnings {
			c.t.Fatalf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
		}
		s := summaryOf(c.t, got)
		for _, w := range s.Warnings {
			// QEMU was killed before this run and before the last one, too.
			if !strings.Contains(w, "is read whole for the second time in a row") || c.lost < 2 {
				c.t.Errorf("it warns: %s", w)
			}
		}
		if s.Consistency != "filesystem" || s.Wrong != 0 || s.PausedUS <= 0 {
			c.t.Errorf("%+v", s)
		}
	case got.code == -1 || got.code == exitFailed:
		hit = true
		c.hits[victim]++
		c.dead++
	}
	if !c.g.Running() {
		if victim == "cairn" || victim == "" {
			c.diagnose(got)
		}
		c.lost++
		boot(c.t, c.g)
		c.write()
	}
	c.judge(earliest, victim == "")
	return hit || victim == ""
}

// diagnose fails the test behind a run that failed though nobody has killed it
// or QEMU, with QEMU's last words if it has ended.
func (c *campaign) diagnose(got result) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), 2*time.Second)
	defer cancel()
	c.t.Fatalf("the run failed: %s%s\nQEMU: %v", got.stdout, got.stderr, c.g.Wait(ctx))
}

// kill kills after a while.
func (c *campaign) kill(r *running, victim string, after time.Duration) {
	c.t.Helper()
	select {
	case <-r.done:
		c.t.Logf("%s: the run had ended before %v", victim, after)
		return
	case <-time.After(after):
	}
	c.t.Logf("killing %s after %v", victim, after)
	switch victim {
	case "cairn":
		r.signal(c.t, syscall.SIGKILL)
	case "QEMU":
		c.g.Kill()
	case "both":
		r.signal(c.t, syscall.SIGSTOP)
		c.g.Kill()
		r.signal(c.t, syscall.SIGKILL)
	}
}

// judge checks the points that are new, and behind a run that was not killed
// that nothing else is left.
func (c *campaign) judge(earliest uint64, whole bool) {
	c.t.Helper()
	points := c.h.points(c.t)
	fresh := len(points) - len(c.committed)
	if fresh < 0 || fresh > 1 || whole && fresh != 1 {
		c.t.Fatalf("%d points became %d", len(c.committed), len(points))
	}
	if fresh == 1 {
		p := points[len(points)-1]
		c.committed = append(c.committed, p.ID)
		c.checkLedger(p.ID, earliest)
	}
	c.h.run(c.t, exitOK, "check")
	for disk, names := range bitmaps(c.t, c.g) {
		if len(names) > maxBitmaps || whole && len(names) > 2+c.dead {
			c.t.Errorf("disk %s has %d bitmaps behind %d dead runs: %q", disk, len(names), c.dead, names)
		}
	}
	if !whole {
		return
	}
	c.dead = 0
	if left := leftovers(c.t, c.g); len(left) > 0 {
		c.t.Errorf("left in QEMU: %q", left)
	}
	for folder, most := range map[string]int{"scratch": 0, "journal": 1} { // the journal's lock stays
		if files := listFiles(c.t, filepath.Join(c.h.state, folder)); len(files) > most {
			c.t.Errorf("left in %s: %q", folder, files)
		}
	}
}

// checkLedger checks that a point holds the ledger as it was at one instant,
// not before the run began and not after now.
func (c *campaign) checkLedger(point string, earliest uint64) {
	c.t.Helper()
	n, err := c.ledgerOf(point)
	// A write that has ended for QEMU need not have ended for the guest.
	latest := c.progress() + 1
	if err != nil || n < earliest || n > latest {
		c.t.Errorf("point %s holds the ledger up to write %d; it was taken between writes %d and %d: %v", point[:8], n, earliest, latest, err)
		return
	}
	c.last = n
}

func (c *campaign) ledgerOf(point string) (uint64, error) {
	c.t.Helper()
	var disks []io.ReaderAt
	for _, id := range ledgerDisks {
		f, err := os.Open(c.h.restoreDisk(c.t, point, id))
		if err != nil {
			c.t.Fatal(err)
		}
		defer f.Close()
		disks = append(disks, f)
	}
	return c.layout.Check(disks)
}

// end stops the VM and compares the last point with the disks, byte by byte.
func (c *campaign) end() {
	c.t.Helper()
	pause(c.t, c.g)
	defer resume(c.t, c.g)
	s := c.h.backup(c.t)
	c.committed = append(c.committed, s.Point)
	c.checkAgain()
	for _, d := range c.disks {
		want := filepath.Join(c.h.dir, "truth-"+d.ID+".raw")
		if err := c.g.CopyDisk(context.WithoutCancel(c.t.Context()), d.ID, want); err != nil {
			c.t.Fatal(err)
		}
		sameImage(c.t, d.ID+" of the last point", c.h.restoreDisk(c.t, s.Point, d.ID), want)
	}
}

// checkAgain reads points again: the later ones must have left them alone. check
// reads all, and some from all over the campaign are compared with the ledger.
func (c *campaign) checkAgain() {
	c.t.Helper()
	c.h.run(c.t, exitOK, "check", "--read-data")
	before := uint64(0)
	step := max(len(c.committed)/10, 1)
	if !labtest.Long() {
		step = max(len(c.committed)/3, 1)
	}
	for i := 0; i < len(c.committed); i += step {
		p := c.committed[i]
		n, err := c.ledgerOf(p)
		if err != nil || n < before {
			c.t.Errorf("point %s, read again at the end: write %d behind %d: %v", p[:8], n, before, err)
		}
		before = n
	}
}
