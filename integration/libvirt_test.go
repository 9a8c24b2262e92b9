package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/labtest"
	"cairn/integration/lab/product"
)

// TestLibvirt drives the product against a real libvirtd with a real guest:
// one domain, one story, because a boot costs seconds.
func TestLibvirt(t *testing.T) {
	labtest.Build(t) // or skips, with a reason
	l := startLibvirtd(t)
	d := l.defineDomain(t, vmName, false)
	h := libvirtHost(t)
	// Guardians of killed runs end before the daemon does: they need it.
	t.Cleanup(func() {
		for begin := time.Now(); len(product.Processes(os.Getenv(cairnEnv))) > 0; time.Sleep(100 * time.Millisecond) {
			if time.Since(begin) > 20*time.Second {
				t.Error("a guardian does not end")
				return
			}
		}
	})
	for _, step := range []struct {
		name string
		run  func(*testing.T, *host, *domain)
	}{
		{"Discover", testDiscover},
		{"FullAndIncremental", testDomainBackup},
		{"InsideAgent", testDomainInside},
		{"TwoRepositories", testTwoRepositories},
		{"ForeignJob", testForeignJob},
		{"KilledWhileReading", testDomainKilled},
		{"DaemonRestarts", testDaemonRestarts},
		{"BrokenCheckpoints", testBrokenCheckpoints},
		{"LiveSnapshot", testLiveSnapshot},
		{"KilledQEMU", testKilledDomain},
		{"BrokenAtThePoint", testBrokenAtThePoint},
		{"FullScratch", testFullScratch},
		{"Off", testDomainOff},
		{"IOThread", testIOThread},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, h, d) }) {
			return // the next steps begin where this one ends
		}
	}
}

func testDiscover(t *testing.T, h *host, d *domain) {
	var found struct {
		Domains []struct {
			Domain, State, Agent, Registered string
			Added                            bool
			Disks                            []struct {
				Name, Format, Source, Serial, Skip string
				Whole                              bool
			}
		}
	}
	h.run(t, exitOK, "vm", "discover", "--libvirt", d.uri, "--json", "nomatch*").decode(t, &found)
	if len(found.Domains) != 0 {
		t.Errorf("a pattern that fits nothing finds %+v", found)
	}
	h.run(t, exitOK, "vm", "discover", "--libvirt", d.uri, "--json", "--add", "web*").decode(t, &found)
	if len(found.Domains) != 1 || found.Domains[0].Domain != vmName || found.Domains[0].State != "running" ||
		found.Domains[0].Agent != "connected" || !found.Domains[0].Added || len(found.Domains[0].Disks) != 4 {
		t.Fatalf("found %+v", found)
	}
	for i, want := range []struct{ name, format, skip string }{{"vda", "qcow2", ""}, {"vdb", "qcow2", ""}, {"vdc", "raw", ""}, {"sda", "", "CD-ROM"}} {
		got := found.Domains[0].Disks[i]
		if got.Name != want.name || got.Format != want.format || got.Skip != want.skip || got.Whole != (want.format == "raw") {
			t.Errorf("disk %d: %+v, want %+v", i, got, want)
		}
		if got.Skip == "" && (got.Source != d.disks[i].path || got.Serial != "serial-"+want.name) {
			t.Errorf("disk %d: %+v", i, got)
		}
	}
	h.run(t, exitOK, "vm", "discover", "--libvirt", d.uri).mentions(t, "registered as web01")
	doctor := h.run(t, exitOK, "doctor", vmName)
	doctor.mentions(t, "and can freeze")
	doctor.mentions(t, "the format is raw")
	h.run(t, exitUsage, "vm", "add", "x", "--libvirt", "qemu+ssh://other/system").mentions(t, "qemu:///system")
	h.run(t, exitUsage, "vm", "add", "x", "--libvirt", d.uri, "--qmp", "/x").mentions(t, "choose one")
}

func testDomainBackup(t *testing.T, h *host, d *domain) {
	s := h.backup(t)
	if s.Read != "full" || s.Consistency != "filesystem" || s.FrozenMS == 0 {
		t.Errorf("the first: %+v", s)
	}
	d.change(t, 300)
	s = d.backupPaused(t, h)
	// The raw disk makes it a full one; the others are not read whole.
	if s.Read != "full" || !strings.Contains(s.Reason, "vdc: full read: the format is raw") || s.BytesDirty > 40<<20 {
		t.Errorf("with a raw disk: %+v", s)
	}
	var shown struct {
		Machine struct {
			DomainXML string `json:"domain_xml"`
			Version   string `json:"qemu_version"`
		} `json:"machine"`
		Disks []struct{ Name, Read string } `json:"disks"`
	}
	h.run(t, exitOK, "show", s.Point, "--json").decode(t, &shown)
	if !strings.Contains(shown.Machine.DomainXML, "<name>"+vmName+"</name>") || !strings.HasPrefix(shown.Machine.Version, "7.") {
		t.Errorf("the manifest's machine: %+v", shown.Machine)
	}
	for _, disk := range shown.Disks {
		if want := map[bool]string{true: "full", false: "incremental"}[disk.Name == "vdc"]; disk.Read != want {
			t.Errorf("disk %s: %s, want %s", disk.Name, disk.Read, want)
		}
	}
	h.run(t, exitOK, "vm", "add", vmName, "--libvirt", d.uri, "--exclude", "vdc", "--replace")
	d.change(t, 300)
	if s = d.backupPaused(t, h, "vdc"); s.Read != "incremental" || s.BytesDirty > 8<<20 || s.BytesDirty < 300<<10 {
		t.Errorf("without the raw disk: %+v", s)
	}
	d.isTidy(t, h)
	if list := d.checkpoints(t); len(list) != 2 { // the parent's goes when the next run has seen this one
		t.Errorf("checkpoints: %q", list)
	}
}

// testTwoRepositories: two repositories take turns, with a checkpoint of
// somebody else between theirs. Nobody's increments suffer.
func testTwoRepositories(t *testing.T, h *host, d *domain) {
	foreign := filepath.Join(d.dir, "foreign.xml")
	if err := os.WriteFile(foreign, []byte(`<domaincheckpoint><name>nightly</name><disks><disk name='vda'/><disk name='vdb'/><disk name='vdc' checkpoint='no'/></disks></domaincheckpoint>`), 0o644); err != nil {
		t.Fatal(err)
	}
	other := libvirtHost(t)
	other.run(t, exitOK, "vm", "add", vmName, "--libvirt", d.uri, "--exclude", "vdc")
	other.backup(t)
	d.change(t, 100)
	d.virsh(t, "checkpoint-create", d.name, foreign)
	for _, turn := range []*host{h, other, h, other} {
		d.change(t, 100)
		if s := d.backupPaused(t, turn, "vdc"); s.Read != "incremental" {
			t.Errorf("in turn: %+v", s)
		}
	}
	list := d.checkpoints(t)
	if len(list) != 5 || !slices.Contains(list, "nightly") {
		t.Errorf("checkpoints: %q, want two of each repository and nightly", list)
	}
	d.virsh(t, "checkpoint-delete", d.name, "nightly")
}

// testForeignJob: a job of somebody else's ends a run at once, and stays.
func testForeignJob(t *testing.T, h *host, d *domain) {
	foreign := filepath.Join(d.dir, "run", "foreign.sock")
	xml := filepath.Join(d.dir, "backup.xml")
	scratch := filepath.Join(d.dir, "images", vmName, "scratch")
	text := `<domainbackup mode='pull'><server transport='unix' socket='` + foreign + `'/><disks><disk name='vdb' backup='yes' type='file'><scratch file='` + scratch + `'/></disk></disks></domainbackup>`
	if err := os.WriteFile(xml, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(foreign), 0o777); err != nil { // QEMU's user makes the socket
		t.Fatal(err)
	}
	d.virsh(t, "backup-begin", d.name, xml)
	begin := time.Now()
	h.run(t, exitFailed, "backup", vmName).mentions(t, "another job")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	if job := d.virsh(t, "backup-dumpxml", d.name); !strings.Contains(job, foreign) {
		t.Errorf("the foreign backup is gone: %s", job)
	}
	h.run(t, exitOK, "doctor", vmName).mentions(t, "is running")
	d.virsh(t, "domjobabort", d.name)
	d.isAlive(t)
	os.Remove(scratch)
}

// testDomainKilled: cairn is killed while the guest is frozen, and while it
// reads. Its guardian thaws, and ends the backup.
func testDomainKilled(t *testing.T, h *host, d *domain) {
	for _, step := range []string{"point", "read", "read"} {
		d.change(t, 100)
		r := h.start(t, "backup", vmName, "--quiet", "--full-read")
		if !h.awaitStep(t, r, step) {
			t.Fatalf("the run ended before: %+v", r.wait())
		}
		r.signal(t, syscall.SIGSTOP) // or it may be quicker
		if step == "point" {
			time.Sleep(200 * time.Millisecond) // what is on its way arrives
			if status := d.virsh(t, "qemu-agent-command", d.name, `{"execute":"guest-fsfreeze-status"}`); !strings.Contains(status, "frozen") {
				t.Errorf("the guest is not frozen at the point: %s", status)
			}
		}
		r.signal(t, syscall.SIGKILL)
		r.wait()
		d.isAlive(t)
		for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			job := d.virsh(t, "domjobinfo", d.name)
			if strings.Contains(job, "None") {
				break
			}
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("killed at %s: the backup still runs: %s", step, job)
			}
		}
	}
	if s := h.backup(t); s.Read != "incremental" {
		t.Errorf("behind the killed ones: %+v", s)
	}
	d.backupPaused(t, h, "vdc")
	d.isTidy(t, h)
}

// testDaemonRestarts: libvirtd is killed while a backup reads, and comes back.
// The backup does not suffer.
func testDaemonRestarts(t *testing.T, h *host, d *domain) {
	d.change(t, 100)
	r := h.start(t, "backup", vmName, "--json", "--full-read")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the run ended before: %+v", r.wait())
	}
	r.signal(t, syscall.SIGSTOP)
	d.kill(t, "/usr/sbin/libvirtd", "")
	r.signal(t, syscall.SIGCONT)
	got := r.wait()
	if got.code != exitOK {
		t.Fatalf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	d.await(t)
	d.isAlive(t)
	if s := d.backupPaused(t, h, "vdc"); s.Read != "incremental" {
		t.Errorf("the one behind it: %+v", s)
	}
	d.isTidy(t, h)
}

// testBrokenCheckpoints: a bitmap of one disk is gone. That disk alone is read
// whole, and the checkpoint goes with the bitmap that it still has.
func testBrokenCheckpoints(t *testing.T, h *host, d *domain) {
	name := lastBitmap(t, h)
	for _, node := range d.nodesWith(t, name)[:1] { // vdb's: its disk was opened first
		d.virsh(t, "qemu-monitor-command", d.name, `{"execute":"block-dirty-bitmap-remove","arguments":{"node":"`+node+`","name":"`+name+`"}}`)
	}
	d.change(t, 100)
	s := d.backupPaused(t, h, "vdc")
	if s.Read != "full" || !strings.Contains(s.Reason, "inconsistent") || s.BytesRead > 260<<20 {
		t.Errorf("one bitmap is gone: %+v", s)
	}
	d.change(t, 100)
	for range 2 { // the second deletes it: the first is not the committed one yet
		if s := d.backupPaused(t, h, "vdc"); s.Read != "incremental" {
			t.Errorf("behind it: %+v", s)
		}
	}
	if left := d.nodesWith(t, name); len(left) > 0 || slices.Contains(d.checkpoints(t), name) {
		t.Errorf("checkpoint %s is left, with bitmaps on %q: %q", name, left, d.checkpoints(t))
	}
}

// testLiveSnapshot: libvirt puts a new image on top of one disk. The next run
// reads that disk whole, says why, and the one behind it is incremental again.
func testLiveSnapshot(t *testing.T, h *host, d *domain) {
	d.virsh(t, "snapshot-create-as", d.name, "--disk-only", "--no-metadata", "--name", "snap",
		"--diskspec", "vda,snapshot=no", "--diskspec", "vdb,snapshot=external", "--diskspec", "vdc,snapshot=no")
	for i := range d.disks {
		if d.disks[i].name == "vdb" {
			d.disks[i].path = strings.TrimSuffix(d.disks[i].path, ".qcow2") + ".snap"
		}
	}
	d.change(t, 100)
	s := d.backupPaused(t, h, "vdc")
	if s.Read != "full" || !strings.HasPrefix(s.Reason, "vdb: full read: the disk's image files changed") {
		t.Errorf("behind a snapshot: %+v", s)
	}
	for range 2 { // the second deletes the last checkpoint from before the snapshot
		d.change(t, 100)
		if s := d.backupPaused(t, h, "vdc"); s.Read != "incremental" {
			t.Errorf("the one behind it: %+v", s)
		}
	}
	d.isTidy(t, h)
}

// lastBitmap gives the checkpoint of a host's newest point.
func lastBitmap(t *testing.T, h *host) string {
	t.Helper()
	var shown struct {
		Disks []struct{ Bitmap string } `json:"disks"`
	}
	h.run(t, exitOK, "show", vmName+"@latest", "--json").decode(t, &shown)
	return shown.Disks[0].Bitmap
}

// nodesWith lists the nodes that have a bitmap.
func (d *domain) nodesWith(t *testing.T, name string) (nodes []string) {
	t.Helper()
	var answer struct {
		Return []struct {
			Node    string `json:"node-name"`
			Bitmaps []struct {
				Name string `json:"name"`
			} `json:"dirty-bitmaps"`
		} `json:"return"`
	}
	out := d.virsh(t, "qemu-monitor-command", d.name, `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`)
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatal(err)
	}
	for _, n := range answer.Return {
		for _, b := range n.Bitmaps {
			if b.Name == name {
				nodes = append(nodes, n.Node)
			}
		}
	}
	return nodes
}

// testKilledDomain: QEMU is killed, and its bitmaps are gone. The next run
// reads all and says why; the one behind it is incremental.
func testKilledDomain(t *testing.T, h *host, d *domain) {
	d.crash(t)
	d.boot(t)
	d.change(t, 100)
	if s := d.backupPaused(t, h, "vdc"); s.Read != "full" || !strings.Contains(s.Reason, "inconsistent") {
		t.Errorf("behind a crash: %+v", s)
	}
	d.change(t, 100)
	if s := d.backupPaused(t, h, "vdc"); s.Read != "incremental" {
		t.Errorf("the one behind it: %+v", s)
	}
	// libvirt is made to forget a checkpoint, as undefine and define do. The
	// next run cannot know that its bitmap, whose number it takes, is there.
	last := lastBitmap(t, h)
	repo, number, _ := strings.Cut(strings.TrimPrefix(last, "cairn-"), "-")
	next := "cairn-" + repo + "-" + increment(t, number)
	for _, node := range d.nodesWith(t, last)[:1] {
		d.virsh(t, "qemu-monitor-command", d.name, `{"execute":"block-dirty-bitmap-add","arguments":{"node":"`+node+`","name":"`+next+`","persistent":true}}`)
	}
	if s := d.backupPaused(t, h, "vdc"); s.Read != "incremental" {
		t.Errorf("with a bitmap that nobody knows: %+v", s)
	}
	d.isTidy(t, h)
}

// crash kills the domain's QEMU and waits until libvirt knows.
func (d *domain) crash(t *testing.T) {
	t.Helper()
	d.kill(t, "/usr/bin/qemu-system-x86_64", "guest="+d.name+",")
	for begin := time.Now(); d.virsh(t, "domstate", d.name) != "shut off"; time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("libvirt does not notice that QEMU was killed")
		}
	}
}

func testDomainOff(t *testing.T, h *host, d *domain) {
	d.virsh(t, "destroy", d.name, "--graceful")
	h.run(t, exitOK, "doctor", vmName).mentions(t, "shutoff")
	d.virsh(t, "start", "--paused", d.name)
	if s := d.backupPaused(t, h, "vdc"); s.Read != "incremental" {
		t.Errorf("over a clean restart: %+v", s)
	}
	// Off, it is read from its images; then a run under libvirt, whose
	// checkpoints know nothing of that, and one that is incremental again.
	d.virsh(t, "destroy", d.name, "--graceful")
	want := d.truth(t, h.dir)
	off := h.backup(t)
	if !strings.Contains(off.Why, "the VM was off") {
		t.Errorf("of a domain that is off: %+v", off)
	}
	for disk, file := range want {
		if disk != "vdc" { // left out
			sameImage(t, disk+" of a domain that is off", h.restoreDisk(t, off.Point, disk), file)
		}
	}
	if r := readsOf(t, h, off)["vda"]; r.Read != "incremental" {
		t.Errorf("vda of a domain that is off: %+v", r)
	}
	d.virsh(t, "start", "--paused", d.name)
	d.backupPaused(t, h, "vdc")
	if s := d.backupPaused(t, h, "vdc"); readsOf(t, h, s)["vda"].Read != "incremental" {
		t.Errorf("the second run after it: %+v", s)
	}
}

func increment(t *testing.T, number string) string {
	t.Helper()
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(n + 1)
}
