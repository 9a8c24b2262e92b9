package job

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/chunk"
	"cairn/cmd/internal/job/image"
	"cairn/index/restorepoint"
)

func sampleManifest() *restorepoint.Manifest {
	return &restorepoint.Manifest{
		Version: 1, ID: "0123456789abcdef0123456789abcdef", VM: restorepoint.VM{Name: "web01"}, Time: time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC),
		Disks:   []restorepoint.Disk{{Name: "vda", Node: "vda", Size: 1 << 20, Chain: []string{"/img/vda.qcow2"}}},
		Machine: restorepoint.Machine{CommandLine: []string{"qemu-system-x86_64", "-drive", "file=/img/vda.qcow2,if=virtio,format=qcow2"}, NVRAM: []byte("vars")},
	}
}

func quiet(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, want %d, equal %v, %v", path, len(got), len(want), bytes.Equal(got, want), err)
	}
}

// dataDisk is a point's disk of whole chunks in memory, all of it data.
type dataDisk []byte

func (d dataDisk) Size() int64 { return int64(len(d)) }

func (d dataDisk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d).ReadAt(p, off)
}

func (d dataDisk) NextData(off int64) (int64, int64, error) {
	if off >= d.Size() {
		return 0, 0, io.EOF
	}
	return off, d.Size(), nil
}

func (d dataDisk) disk() image.Disk {
	hasher := func() *chunk.Hasher { return chunk.NewHasher([32]byte{7}) }
	return image.Disk{Name: "web01 vda", Image: d, Hasher: hasher, IDs: func(_ context.Context, first int64, dst []chunk.ID) error {
		for i := range dst {
			at := (first + int64(i)) * chunk.Size
			dst[i] = hasher().Sum(d[at : at+chunk.Size])
		}
		return nil
	}}
}

func openBoot(t *testing.T, dir string) (*Boot, bool) {
	t.Helper()
	b, fresh, err := OpenBoot(dir, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return b, fresh
}

// What a VM wrote is never written over: an overlay that is there stays, and
// one that is lost is not made anew once the VM was started.
func TestBootKeepsWhatWasWritten(t *testing.T) {
	dir, images := t.TempDir(), t.TempDir()
	write(t, filepath.Join(images, "vda.raw"), make([]byte, 1<<20))
	overlay := filepath.Join(dir, "vda.qcow2")
	b, fresh := openBoot(t, dir)
	if !fresh {
		t.Fatal("an empty folder has a VM")
	}
	write(t, overlay, []byte("writes"))
	if err := b.Prepare(sampleManifest(), "/repo", "web02", images); err == nil || !strings.Contains(err.Error(), "may hold what a VM wrote") {
		t.Errorf("over somebody's image: %v", err)
	}
	if _, fresh := openBoot(t, dir); !fresh {
		t.Error("a VM that was refused is there")
	}
	if err := os.Remove(overlay); err != nil {
		t.Fatal(err)
	}
	if err := b.Prepare(sampleManifest(), "/repo", "web02", images); err != nil {
		t.Fatal(err)
	}
	if err := b.overlays(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(overlay)
	if err != nil {
		t.Fatal(err)
	}
	again, fresh := openBoot(t, dir)
	if fresh || again.State.Point != b.State.Point || again.State.Machine.Args[0] != "qemu-system-x86_64" || again.Running() {
		t.Errorf("read again: %+v", again.State)
	}
	if err := again.overlays(t.Context()); err != nil {
		t.Fatal(err)
	}
	holds(t, overlay, first)
	holds(t, filepath.Join(dir, nvramFile), []byte("vars"))
	again.State.PID = 1 // it was started
	if err := os.Remove(overlay); err != nil {
		t.Fatal(err)
	}
	if err := again.overlays(t.Context()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "what the VM wrote") {
		t.Errorf("a lost overlay: %v", err)
	}
	again.State.PID = 0
	if err := os.Remove(filepath.Join(images, "vda.raw")); err != nil {
		t.Fatal(err)
	}
	if err := again.overlays(t.Context()); err == nil || !strings.Contains(err.Error(), "forgotten") {
		t.Errorf("a point that is gone: %v", err)
	}
}

// A folder has one user at a time, and one that cannot be read is not taken
// for an empty one.
func TestBootFolder(t *testing.T) {
	dir := t.TempDir()
	a, _ := openBoot(t, dir)
	b, _ := openBoot(t, dir)
	if err := a.Lock(); err != nil {
		t.Fatal(err)
	}
	if err := b.Lock(); !errors.Is(err, ErrBootElsewhere) {
		t.Errorf("a second user: %v", err)
	}
	a.Unlock()
	if err := b.Lock(); err != nil {
		t.Errorf("after the first: %v", err)
	}
	b.Unlock()
	for _, text := range []string{"", "{", "{}", `{"version":2,"machine":{}}`} {
		write(t, filepath.Join(dir, bootFile), []byte(text))
		if _, _, err := OpenBoot(dir, t.Logf); !errors.Is(err, restorepoint.ErrCorrupt) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := OpenBoot(filepath.Join(dir, strings.Repeat("n", 100)), t.Logf); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long name: %v", err)
	}
}

// A process is known again by its number and its start; the number alone may
// be another's by now.
func TestBootKnowsItsProcess(t *testing.T) {
	started, ok := processStart(os.Getpid())
	if !ok || started == 0 {
		t.Fatalf("this process: %d, %v", started, ok)
	}
	for _, c := range []struct {
		pid     int
		started uint64
		want    bool
	}{{os.Getpid(), started, true}, {os.Getpid(), started + 1, false}, {0, started, false}, {-1, 0, false}, {1 << 30, 0, false}} {
		b := &Boot{State: BootState{PID: c.pid, Started: c.started}}
		if b.Running() != c.want {
			t.Errorf("%+v: running %v", c, b.Running())
		}
	}
}

// A VM that cannot be started is refused before anything is written.
func TestRestoreVMRefusesEarly(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*restorepoint.Manifest)
		want   string
	}{
		"no command line": {func(m *restorepoint.Manifest) { m.Machine.CommandLine = nil }, "the point has none"},
		"another disk":    {func(m *restorepoint.Manifest) { m.Disks[0].Chain[0] = "/other" }, "no place for the disk vda"},
		"hostile name":    {func(m *restorepoint.Manifest) { m.Disks[0].Name = "../x" }, `"../x"`},
		"hidden name":     {func(m *restorepoint.Manifest) { m.Disks[0].Name = ".x" }, `".x"`},
	} {
		m := sampleManifest()
		c.change(m)
		dir := filepath.Join(t.TempDir(), "vm")
		v := VMRestore{Manifest: m, Folder: dir, Progress: quiet, Open: func(string) (image.Disk, error) { return image.Disk{}, errors.New("opened a disk") }}
		if _, err := v.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the folder was made", name)
		}
	}
}

// The folder of a restored VM holds its disks, its firmware's variables and
// the script, for root alone.
func TestRestoreVM(t *testing.T) {
	m, disk := sampleManifest(), dataDisk(bytes.Repeat([]byte("web01"), 1<<20/5+1)[:1<<20])
	m.Skipped = []restorepoint.Skipped{{Name: "vdb", Reason: "excluded\nrm -rf /"}}
	dir := filepath.Join(t.TempDir(), "vm")
	v := VMRestore{Manifest: m, Folder: dir, Progress: quiet, Open: func(string) (image.Disk, error) { return disk.disk(), nil }}
	r, err := v.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "vda.raw"), disk)
	holds(t, filepath.Join(dir, nvramFile), []byte("vars"))
	script, err := os.ReadFile(r.Start)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"'guest=web01-restored'", "file=" + dir + "/vda.raw", "'" + r.UUID + "'", "# not in the restore point: disk vdb (excluded?rm -rf /)"} {
		if !strings.Contains(string(script), want) {
			t.Errorf("the script lacks %s:\n%s", want, script)
		}
	}
	if st, err := os.Stat(r.Start); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	m.Machine.DomainXML = "<domain><name>x</name><devices><disk><source file='/img/vda.qcow2'/><target dev='vda'/></disk></devices></domain>"
	v.Folder, v.Name, v.Disk.Format = filepath.Join(t.TempDir(), "vm"), "web03", image.FormatQCOW2
	if r, err = v.Run(t.Context()); err != nil || filepath.Base(r.Start) != domainFile || !r.IsDomain {
		t.Fatalf("%+v, %v", r, err)
	}
	if out, err := image.QEMUImg(t.Context(), "check", "-f", "qcow2", r.Files["vda"]); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
