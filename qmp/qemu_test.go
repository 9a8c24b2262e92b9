package qmp

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const testRepo = "0badcafe"

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// qemuBinary gives the QEMU to test with; CAIRN_TEST_QEMU names another one.
func qemuBinary(t testing.TB) string {
	t.Helper()
	name := os.Getenv("CAIRN_TEST_QEMU")
	if name == "" {
		name = "qemu-system-x86_64"
	}
	for _, program := range []string{name, "qemu-img"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s, which is not installed", program)
		}
	}
	return name
}

// testDisk describes a disk of a test VM.
type testDisk struct {
	id, format string
	size       int64
	backing    string // file of a backing image, "" for none
	iothread   bool
	// scsi makes it a virtio-scsi disk, whose node is on the iothread from the
	// beginning: virtio-blk waits for a guest's driver.
	scsi     bool
	throttle int    // writes a second that the file takes; 0: all
	extra    string // more options of the format node
}

// vm is a QEMU without a guest: a q35 that stands still, with virtio-blk
// disks. Writes come in through HMP's qemu-io, addressed to the device, so
// that they pass the filter as a guest's do.
type vm struct {
	t       testing.TB
	dir     string
	disks   []testDisk
	extra   []string
	cmd     *exec.Cmd
	conn    *Conn
	exited  chan struct{}
	running bool // start the virtual CPU: it halts at once
}

func (v *vm) file(id string) string { return filepath.Join(v.dir, id+".img") }

func newVM(t testing.TB, disks ...testDisk) *vm {
	t.Helper()
	v := &vm{t: t, dir: shortTemp(t), disks: disks}
	for _, d := range disks {
		args := []string{"create", "-q", "-f", d.format}
		if d.backing != "" {
			args = append(args, "-b", d.backing, "-F", "raw")
		}
		run(t, "qemu-img", append(args, v.file(d.id), fmt.Sprint(d.size))...)
	}
	v.boot()
	return v
}

// shortTemp is t.TempDir with a name that leaves room for a socket's.
func shortTemp(t testing.TB) string {
	dir, err := os.MkdirTemp("", "cairn")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func (v *vm) boot() {
	v.t.Helper()
	binary := qemuBinary(v.t)
	args := []string{"-name", "web01", "-uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
		"-nodefaults", "-display", "none", "-machine", "q35", "-m", "32", "-accel", "tcg", "-bios", haltROM(v.t, v.dir),
		"-object", "iothread,id=io0",
		"-qmp", "unix:" + v.dir + "/qmp,server=on,wait=off", "-qmp", "unix:" + v.dir + "/qmp2,server=on,wait=off"}
	if !v.running {
		args = append(args, "-S")
	}
	for _, d := range v.disks {
		disk := "drive=" + d.id + ",id=" + d.id + "-dev,serial=" + strings.ToUpper(d.id)
		thread := ""
		if d.iothread {
			thread = ",iothread=io0"
		}
		devices := []string{"-device", "virtio-blk-pci," + disk + thread}
		if d.scsi {
			devices = []string{"-device", "virtio-scsi-pci,id=" + d.id + "-bus" + thread, "-device", "scsi-hd,bus=" + d.id + "-bus.0," + disk}
		}
		file := d.id + "-file"
		args = append(args, "-blockdev", "driver=file,node-name="+file+",filename="+v.file(d.id)+",discard=unmap")
		if d.throttle > 0 {
			group := d.id + "-group"
			args = append(args, "-object", fmt.Sprintf("throttle-group,id=%s,x-iops-write=%d", group, d.throttle),
				"-blockdev", "driver=throttle,node-name="+d.id+"-slow,throttle-group="+group+",file="+file)
			file = d.id + "-slow"
		}
		args = append(args,
			"-blockdev", "driver="+d.format+",node-name="+d.id+",file="+file+",discard=unmap"+d.extra)
		args = append(args, devices...)
	}
	v.start(binary, append(args, v.extra...))
}

// haltROM is a firmware of one instruction, so that a VM that runs takes no time:
// x86 begins 16 bytes before its end, with interrupts off.
func haltROM(t testing.TB, dir string) string {
	t.Helper()
	rom := make([]byte, 64<<10)
	copy(rom[len(rom)-16:], []byte{0xf4, 0xeb, 0xfd}) // hlt; jmp to the hlt
	file := filepath.Join(dir, "halt.rom")
	must(t, os.WriteFile(file, rom, 0o600))
	return file
}

func (v *vm) start(binary string, args []string) {
	v.t.Helper()
	cmd := exec.Command(binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(v.t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	v.cmd, v.exited = cmd, exited
	v.t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		if v.t.Failed() && stderr.Len() > 0 {
			v.t.Logf("QEMU said: %s", stderr.String())
		}
	})
	v.connect()
}

// connect dials the monitor, also again after a client's death.
func (v *vm) connect() {
	v.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		var err error
		if v.conn, err = Dial(testContext(v.t), v.dir+"/qmp"); err == nil {
			break
		}
		select {
		case <-v.exited:
			v.t.Fatal("QEMU ended")
		default:
		}
		if time.Now().After(deadline) || errors.Is(err, ErrMonitorBusy) {
			v.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	conn := v.conn
	v.t.Cleanup(func() { conn.Close() })
}

// quit ends QEMU as an administrator does; the images are closed.
func (v *vm) quit() {
	v.t.Helper()
	v.conn.Execute(testContext(v.t), "quit", nil, nil)
	<-v.exited
	v.conn.Close()
}

// kill ends QEMU as a power failure does.
func (v *vm) kill() {
	v.cmd.Process.Signal(syscall.SIGKILL)
	<-v.exited
	v.conn.Close()
}

func (v *vm) alive() bool {
	select {
	case <-v.exited:
		return false
	default:
		return v.conn.run(testContext(v.t), queryStatus{}, nil) == nil
	}
}

// io runs a qemu-io command on a disk's device and gives what it said.
func (v *vm) io(id, command string) string {
	v.t.Helper()
	var out string
	must(v.t, v.conn.Execute(testContext(v.t), "human-monitor-command", map[string]string{
		"command-line": fmt.Sprintf("qemu-io -d %s \"%s\"", v.device(id), command),
	}, &out))
	return out
}

// device is where QEMU has a disk's device.
func (v *vm) device(id string) string {
	for _, d := range v.disks {
		if d.id == id && d.scsi {
			return "/machine/peripheral/" + id + "-dev"
		}
	}
	return "/machine/peripheral/" + id + "-dev/virtio-backend"
}

func (v *vm) write(id string, pattern int, off, n int64) {
	v.t.Helper()
	out := v.io(id, fmt.Sprintf("write -P %d %d %d", pattern, off, n))
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		v.t.Fatalf("write to %s: %s", id, out)
	}
}

func (v *vm) inspect() *Machine {
	v.t.Helper()
	m, err := Inspect(testContext(v.t), v.conn)
	must(v.t, err)
	return m
}

func (v *vm) disk(id string) Disk {
	v.t.Helper()
	for _, d := range v.inspect().Disks {
		if d.Name == id {
			return d
		}
	}
	v.t.Fatalf("no disk %q", id)
	return Disk{}
}

// truth gives a disk's present content, read by a second way: qemu-img on the
// image, which works because locks are not taken with -U.
func (v *vm) truth(id string) []byte {
	v.t.Helper()
	v.io(id, "flush")
	out := filepath.Join(v.dir, id+".truth")
	var format string
	for _, d := range v.disks {
		if d.id == id {
			format = d.format
		}
	}
	run(v.t, "qemu-img", "convert", "-U", "-f", format, "-O", "raw", v.file(id), out)
	data, err := os.ReadFile(out)
	must(v.t, err)
	return data
}

// backup drives whole runs and keeps the images that a store would have.
type backup struct {
	*vm
	ids       []string
	repo      string
	committed uint64
	records   map[string]BitmapRecord
	images    map[string][]byte
	during    func() // called between Export and reading
	options   func(*FleeceOptions)
	decisions map[string]Decision
	point     PointInfo
	bytesRead int64
	begins    context.Context // for begin, nil for the test's
}

func newBackup(v *vm, ids ...string) *backup {
	return &backup{vm: v, ids: ids, repo: testRepo, records: map[string]BitmapRecord{}, images: map[string][]byte{}}
}

// begin prepares a fleece as the next attempt would.
func (b *backup) begin() (*Fleece, uint64, error) {
	b.t.Helper()
	ctx := testContext(b.t)
	if b.begins != nil {
		ctx = b.begins
	}
	opt := FleeceOptions{Repo: b.repo, ScratchDir: b.dir, SocketDir: b.dir + "/s", MinScratch: 1}
	b.decisions = map[string]Decision{}
	var disks []Disk
	for _, id := range b.ids {
		d := b.disk(id)
		disks = append(disks, d)
		var committed *BitmapRecord
		if r, ok := b.records[id]; ok {
			committed = &r
		}
		b.decisions[id] = Plan(d, b.repo, committed)
		opt.Disks = append(opt.Disks, FleeceDisk{d, b.decisions[id]})
	}
	opt.Seq = NextSeq(disks, b.repo, b.committed)
	if b.options != nil {
		b.options(&opt)
	}
	f, err := Prepare(ctx, b.conn, opt)
	return f, opt.Seq, err
}

// run makes one backup. fail ends the attempt before the commit.
func (b *backup) run(fail bool) error {
	b.t.Helper()
	ctx := testContext(b.t)
	f, seq, err := b.begin()
	if err != nil {
		return err
	}
	defer func() { must(b.t, f.Release(ctx)) }()
	if b.point, err = f.Point(ctx, true); err != nil {
		return err
	}
	sources, err := f.Export(ctx)
	if err != nil {
		return err
	}
	if b.during != nil {
		b.during()
	}
	images := map[string][]byte{}
	b.bytesRead = 0
	for i, s := range sources {
		if images[b.ids[i]], err = b.apply(ctx, b.ids[i], s); err != nil {
			return err
		}
	}
	must(b.t, f.Release(ctx))
	if fail {
		return nil
	}
	return b.commit(ctx, images, f, seq)
}

func (b *backup) commit(ctx context.Context, images map[string][]byte, f *Fleece, seq uint64) error {
	b.t.Helper()
	b.committed = seq
	var disks []Disk
	for i, id := range b.ids {
		b.images[id] = images[id]
		b.records[id] = f.opt.Disks[i].Disk.Record(b.repo, seq)
		disks = append(disks, f.opt.Disks[i].Disk)
	}
	return Advance(ctx, b.conn, disks, b.repo, seq)
}

// apply gives the image of a source: the last one with what is read now.
func (b *backup) apply(ctx context.Context, id string, s Source) ([]byte, error) {
	image := make([]byte, s.Size())
	incremental := b.decisions[id].Incremental
	if incremental {
		copy(image, b.images[id])
	}
	at := int64(0)
	err := s.Extents(ctx, func(off, length int64, zero bool) error {
		if off < at || length <= 0 || off+length > s.Size() {
			return fmt.Errorf("extent [%d,+%d) behind %d", off, length, at)
		}
		at = off + length
		p := image[off : off+length]
		if zero {
			clear(p)
			return nil
		}
		b.bytesRead += length
		_, err := s.ReadAt(ctx, p, off)
		return err
	})
	if err == nil && !incremental && at != s.Size() {
		err = fmt.Errorf("a full read ended at %d of %d", at, s.Size())
	}
	return image, err
}

func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if md5.Sum(got) != md5.Sum(want) {
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%s: bytes differ from %d on: %d, want %d", what, i, got[i], want[i])
			}
		}
	}
}

func pretty(v any) string {
	b, _ := json.MarshalIndent(v, "", " ")
	return string(b)
}
