package qmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/qmp/storage"
)

// images gives the VM's images as a restore point would name them.
func (v *vm) images() []Image {
	var list []Image
	for _, d := range v.disks {
		list = append(list, Image{Name: d.id, Node: d.id, Device: d.id + "-dev", Serial: strings.ToUpper(d.id), File: v.file(d.id), Format: d.format})
	}
	return list
}

// offline gives the VM by its images. Whether it runs is asked at its second
// monitor: the first one is the test's.
func (v *vm) offline(images []Image) *Offline {
	v.t.Helper()
	dir := filepath.Join(v.dir, "off")
	must(v.t, os.MkdirAll(dir, 0o700))
	o := NewOffline(OfflineOptions{Images: images, Dir: dir, Name: "web01", Running: func(context.Context) bool { return v.process() }})
	v.t.Cleanup(func() { o.Close() })
	return o
}

// process says whether the VM's QEMU runs.
func (v *vm) process() bool {
	select {
	case <-v.exited:
		return false
	default:
		return true
	}
}

// offTruth gives a disk's content by qemu-img, while the VM is off.
func (v *vm) offTruth(id, format string) []byte {
	v.t.Helper()
	out := filepath.Join(v.dir, id+".truth")
	run(v.t, "qemu-img", "convert", "-f", format, "-O", "raw", v.file(id), out)
	data, err := os.ReadFile(out)
	must(v.t, err)
	return data
}

// offWrite writes to an image while the VM is off.
func (v *vm) offWrite(id, format string, pattern int, off, n int64) {
	v.t.Helper()
	run(v.t, "qemu-io", "-f", format, "-c", fmt.Sprintf("write -P %d %d %d", pattern, off, n), v.file(id))
}

// beginOff plans an attempt of a VM that is off, as the job does.
func (b *backup) beginOff() (*Offline, *OfflineFleece, *Machine, uint64, error) {
	b.t.Helper()
	ctx := testContext(b.t)
	o := b.vm.offline(b.vm.images())
	m, err := o.Inspect(ctx)
	if err != nil {
		return o, nil, nil, 0, err
	}
	opt := FleeceOptions{Repo: b.repo, ScratchDir: b.dir, SocketDir: b.dir + "/s"}
	b.decisions = map[string]Decision{}
	for _, d := range m.Disks {
		var committed *BitmapRecord
		if r, ok := b.records[d.Name]; ok {
			committed = &r
		}
		b.decisions[d.Name] = Plan(d, b.repo, committed)
		opt.Disks = append(opt.Disks, FleeceDisk{d, b.decisions[d.Name]})
	}
	opt.Seq = NextSeq(m.Disks, b.repo, b.committed)
	f, err := o.Prepare(ctx, opt)
	return o, f, m, opt.Seq, err
}

// runOff makes one backup of the VM, which is off. fail ends the attempt
// before the commit.
func (b *backup) runOff(fail bool) error {
	b.t.Helper()
	ctx := testContext(b.t)
	o, f, m, seq, err := b.beginOff()
	if err != nil {
		return err
	}
	defer func() {
		must(b.t, f.Release(ctx))
		must(b.t, o.Close())
	}()
	begin := time.Now()
	if b.point, err = f.Point(ctx, true); err != nil {
		return err
	}
	b.t.Logf("point of a VM that is off: %v", time.Since(begin))
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
		id := f.opt.Disks[i].Disk.Name
		if images[id], err = b.apply(ctx, id, s); err != nil {
			return err
		}
	}
	if err := f.Unchanged(ctx); err != nil {
		return err
	}
	must(b.t, f.Release(ctx))
	if fail {
		return nil
	}
	b.committed = seq
	for _, d := range f.opt.Disks {
		b.images[d.Disk.Name], b.records[d.Disk.Name] = images[d.Disk.Name], d.Disk.Record(b.repo, seq)
	}
	return o.Advance(ctx, m.Disks, b.repo, seq)
}

// same compares the last images with the disks of the VM, on or off.
func (b *backup) same(what string) {
	b.t.Helper()
	for _, d := range b.disks {
		want := []byte(nil)
		if b.process() {
			want = b.truth(d.id)
		} else {
			want = b.offTruth(d.id, d.format)
		}
		equal(b.t, what+": "+d.id, b.images[d.id], want)
	}
}

// wants checks how a disk was read.
func (b *backup) wants(what, id string, incremental bool, reason string) {
	b.t.Helper()
	d := b.decisions[id]
	if d.Incremental != incremental || !strings.Contains(d.Reason, reason) {
		b.t.Errorf("%s: disk %s: incremental %v: %s; want incremental %v and %q", what, id, d.Incremental, d.Reason, incremental, reason)
	}
}

// TestOffline follows a VM with a qcow2 disk, one on a backing file and a raw
// one through being on and off. After each point the images are the disks.
func TestOffline(t *testing.T) {
	qemuBinary(t)
	const size = 8 << 20
	dir := shortTemp(t)
	base := filepath.Join(dir, "base.raw")
	must(t, os.WriteFile(base, bytes.Repeat([]byte("base"), size/4), 0o600))
	newVM(t, testDisk{id: "vdz", format: "qcow2", size: size, backing: base}) // another VM runs on the same base all the time
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: size}, testDisk{id: "vdb", format: "qcow2", size: size, backing: base}, testDisk{id: "vdc", format: "raw", size: size})
	b := newBackup(v, "vda", "vdb", "vdc")
	write := func(pattern int, off, n int64) {
		t.Helper()
		for _, d := range v.disks {
			if v.process() {
				v.write(d.id, pattern, off, n)
			} else {
				v.offWrite(d.id, d.format, pattern, off, n)
			}
		}
	}
	write(1, 1<<20, 100_000)
	must(t, b.run(false))
	b.same("while it runs")

	write(2, 3<<20, 70_000)
	v.quit()
	must(t, b.runOff(false))
	b.same("off, after a point while it ran")
	b.wants("off, after a point while it ran", "vda", true, "recorded all changes")
	b.wants("off, after a point while it ran", "vdb", true, "recorded all changes")
	b.wants("off, after a point while it ran", "vdc", false, "raw images keep no bitmaps")
	if b.bytesRead > size+4*128<<10 {
		t.Errorf("read %d bytes, the raw disk has %d", b.bytesRead, size)
	}

	write(3, 5<<20, 4096)
	must(t, b.runOff(true)) // dies before its commit
	write(4, 6<<20, 4096)
	must(t, b.runOff(false))
	b.same("off, after writes by qemu-io")
	b.wants("off, after writes by qemu-io", "vda", true, "2 bitmaps")

	v.boot()
	write(5, 7<<20, 4096)
	must(t, b.run(false))
	b.same("on again")
	b.wants("on again", "vda", true, "recorded all changes")
	b.wants("on again", "vdb", true, "recorded all changes")
	b.wants("on again", "vdc", false, "raw cannot keep bitmaps")
	if got := OurBitmaps(v.disk("vda"), testRepo); len(got) != 1 {
		t.Errorf("bitmaps that nobody needs are left: %v", got)
	}

	v.kill()
	must(t, b.runOff(false))
	b.same("off, after a power failure")
	b.wants("off, after a power failure", "vda", false, "is gone: QEMU or the host ended without closing")
	must(t, b.runOff(false))
	b.same("off, once more")
	b.wants("off, once more", "vda", true, "recorded all changes")
	if b.bytesRead > size {
		t.Errorf("nothing changed: read %d bytes, the raw disk has %d", b.bytesRead, size)
	}
	for _, d := range v.disks[:2] {
		run(t, "qemu-img", "check", "-q", v.file(d.id))
	}
}

// TestOfflineFirst: a VM's first point may be made while it is off, and the
// next one while it runs is incremental.
func TestOfflineFirst(t *testing.T) {
	qemuBinary(t)
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 << 20})
	v.write("vda", 1, 0, 1<<20)
	v.quit()
	b := newBackup(v, "vda")
	must(t, b.runOff(false))
	b.same("the first point")
	b.wants("the first point", "vda", false, "no earlier point")
	// Whoever registers images may not know serials.
	r := b.records["vda"]
	r.Serial = ""
	b.records["vda"] = r
	v.boot()
	v.write("vda", 2, 2<<20, 4096)
	must(t, b.run(false))
	b.same("the second one, while it runs")
	b.wants("the second one, while it runs", "vda", true, "recorded all changes")
}

// TestOfflineStarted: a VM starts while its images are read, however that
// goes, and the attempt fails; what it did to the bitmaps does no harm.
func TestOfflineStarted(t *testing.T) {
	qemuBinary(t)
	for _, format := range []string{"qcow2", "raw"} {
		for _, c := range []struct {
			name string
			then func(v *vm)
		}{
			{"runs", func(v *vm) { v.boot() }},
			{"ran and wrote", func(v *vm) {
				v.boot()
				v.write("vda", 9, 1<<20, 4096)
				v.quit()
			}},
			{"was replaced", func(v *vm) {
				run(v.t, "cp", v.file("vda"), v.file("vda")+"2")
				must(v.t, os.Rename(v.file("vda")+"2", v.file("vda")))
			}},
			{"was written to by another program", func(v *vm) { v.offWrite("vda", format, 9, 1<<20, 4096) }},
		} {
			t.Run(format+" "+c.name, func(t *testing.T) {
				v := newVM(t, testDisk{id: "vda", format: format, size: 8 << 20})
				v.write("vda", 1, 0, 1<<20)
				v.quit()
				b := newBackup(v, "vda")
				must(t, b.runOff(false))
				v.offWrite("vda", format, 2, 2<<20, 4096)
				b.during = func() { c.then(v) }
				if err := b.runOff(false); !errors.Is(err, ErrVMStarted) {
					t.Fatalf("want ErrVMStarted, got %v", err)
				}
				b.during = nil
				if v.process() {
					v.write("vda", 3, 3<<20, 4096)
					must(t, b.run(false))
				} else {
					must(t, b.runOff(false))
				}
				b.same("the next point")
				if format == "qcow2" {
					b.wants("the next point", "vda", true, "2 bitmaps")
				}
			})
		}
	}
}

// TestOfflineWatch: a reader is told as soon as somebody opens an image for writing.
func TestOfflineWatch(t *testing.T) {
	qemuBinary(t)
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 << 20})
	v.quit()
	b := newBackup(v, "vda")
	_, f, _, _, err := b.beginOff()
	must(t, err)
	ctx := testContext(t)
	_, err = f.Point(ctx, false)
	must(t, err)
	defer func() { must(t, f.Release(ctx)) }()
	_, err = f.Export(ctx)
	must(t, err)
	quiet, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if err := f.Watch(quiet); err != nil {
		t.Fatalf("nothing happened: %v", err)
	}
	told := make(chan error, 1)
	go func() { told <- f.Watch(ctx) }()
	v.boot()
	if err := <-told; !errors.Is(err, ErrVMStarted) {
		t.Errorf("want ErrVMStarted, got %v", err)
	}
	if err := f.Unchanged(ctx); !errors.Is(err, ErrVMStarted) {
		t.Errorf("Unchanged: want ErrVMStarted, got %v", err)
	}
}

// TestOfflineRefuses: what cannot be read safely is refused in words, before
// anything is changed.
func TestOfflineRefuses(t *testing.T) {
	qemuBinary(t)
	dir := shortTemp(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file("good.qcow2"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=secret", "-o", "encrypt.format=aes,encrypt.key-secret=s", file("luks.qcow2"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", file("x.vmdk"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "raw", file("x.raw"), "1M")
	must(t, syscall.Mkfifo(file("pipe"), 0o600))
	for _, c := range []struct{ file, format, want string }{
		{file("missing"), "qcow2", "no such file"},
		{"good.qcow2", "qcow2", "relative name"},
		{"nbd://host/x", "raw", "no plain file on this host"},
		{`json:{"driver":"raw"}`, "raw", "no plain file on this host"},
		{file("luks.qcow2"), "qcow2", "encrypted"},
		{file("x.vmdk"), "vmdk", "only qcow2 and raw"},
		{file("x.raw"), "", "only qcow2 and raw"},
		{file("x.raw"), "qcow2", "no qcow2 image"},
		{file("pipe"), "raw", "neither a file nor a block device"},
	} {
		o := NewOffline(OfflineOptions{Images: []Image{{Name: "vda", File: c.file, Format: c.format}}, Dir: dir, Running: func(context.Context) bool { return false }})
		_, err := o.Inspect(testContext(t))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s as %q: want %q, got %v", c.file, c.format, c.want, err)
		}
		must(t, o.Close())
	}
}

// TestOfflineInUse: an image that another program has open for writing is
// refused, and that program is not disturbed.
func TestOfflineInUse(t *testing.T) {
	qemuBinary(t)
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 << 20})
	o := v.offline(v.images())
	if _, err := o.Inspect(testContext(t)); !errors.Is(err, storage.ErrInUse) || !errors.Is(err, ErrVMStarted) {
		t.Errorf("a running VM: %v", err)
	}
	v.quit()
	for _, args := range [][]string{
		{"-f", "qcow2", v.file("vda")},
		{"--image-opts", "driver=qcow2,file.driver=file,file.locking=off,file.filename=" + v.file("vda")},
	} {
		other := exec.Command("qemu-nbd", append([]string{"-k", v.dir + "/other", "--persistent"}, args...)...)
		must(t, other.Start())
		b := newBackup(v, "vda")
		for begin := time.Now(); ; {
			err := b.runOff(true)
			if errors.Is(err, storage.ErrInUse) && !errors.Is(err, ErrVMStarted) {
				break
			}
			if time.Since(begin) > 10*time.Second {
				t.Errorf("%v: want ErrInUse, got %v", args, err)
				break
			}
			time.Sleep(10 * time.Millisecond) // it starts
		}
		must(t, other.Process.Kill()) // it forgets a SIGTERM that comes while it starts
		_ = other.Wait()              // it was killed
	}
}

// TestOfflineDamaged: an image that QEMU would repair, or not open for
// writing, is read whole as it is, and not written to.
func TestOfflineDamaged(t *testing.T) {
	qemuBinary(t)
	for _, c := range []struct {
		bit   byte // of the header's incompatible features
		words string
	}{{1, "was not closed"}, {2, "marked corrupt"}} {
		v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 << 20})
		v.write("vda", 1, 0, 1<<20)
		v.quit()
		b := newBackup(v, "vda")
		must(t, b.runOff(false))
		b.same("whole")
		image, err := os.ReadFile(v.file("vda"))
		must(t, err)
		image[79] |= c.bit
		must(t, os.WriteFile(v.file("vda"), image, 0o600))
		must(t, b.runOff(false))
		b.wants("damaged", "vda", false, c.words)
		after, err := os.ReadFile(v.file("vda"))
		must(t, err)
		equal(t, "the image's file", after, image)
		b.same(c.words)

		image[79] &^= c.bit // as a repair does
		must(t, os.WriteFile(v.file("vda"), image, 0o600))
		v.offWrite("vda", "qcow2", 2, 2<<20, 4096)
		must(t, b.runOff(false))
		b.same("repaired")
		b.wants("repaired", "vda", false, "is gone")
		must(t, b.runOff(false))
		b.wants("once more", "vda", true, "recorded all changes")
	}
}

// TestOfflineNoRoom: bitmaps that cannot be stored in the image are noticed,
// and the image stays whole.
func TestOfflineNoRoom(t *testing.T) {
	qemuBinary(t)
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 << 20})
	v.write("vda", 1, 0, 1<<20)
	v.quit()
	// A limit of this process's file sizes is one for the daemon, too: what
	// lies behind the image's end cannot be written.
	info, err := os.Stat(v.file("vda"))
	must(t, err)
	var old syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	limit := old
	limit.Cur = uint64(info.Size())
	b := newBackup(v, "vda")
	want := b.offTruth("vda", "qcow2")
	must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
	err = b.runOff(false)
	must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old))
	if err == nil {
		t.Fatal("the bitmaps cannot have been stored, and nobody said so")
	}
	t.Log(err)
	equal(t, "the image", b.offTruth("vda", "qcow2"), want)
	must(t, b.runOff(false))
	b.same("with room again")
}

// TestOfflineFold: attempts that fail one after the other do not pile up bitmaps.
func TestOfflineFold(t *testing.T) {
	qemuBinary(t)
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 << 20})
	v.quit()
	b := newBackup(v, "vda")
	must(t, b.runOff(false))
	for i := range maxPile + 2 {
		v.offWrite("vda", "qcow2", i+1, int64(i)*100_000, 4096)
		must(t, b.runOff(true))
	}
	must(t, b.runOff(false))
	b.same("after failures")
	if d := b.decisions["vda"]; !d.Incremental || len(d.Merge) > maxPile {
		t.Errorf("%d bitmaps are merged: %s", len(d.Merge), d.Reason)
	}
}

// TestOfflineProperty: whatever happens to a VM between points, on or off,
// each point is its disks, byte for byte.
func TestOfflineProperty(t *testing.T) {
	qemuBinary(t)
	seeds, rounds := []uint64{1}, 20
	if os.Getenv("CAIRN_LONG") != "" {
		seeds, rounds = []uint64{2, 3, 4, 5}, 150
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { offlineProperty(t, rand.New(rand.NewPCG(seed, 7)), rounds) })
	}
}

func offlineProperty(t *testing.T, random *rand.Rand, rounds int) {
	const size = 8 << 20
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: size}, testDisk{id: "vdb", format: "raw", size: size})
	b := newBackup(v, "vda", "vdb")
	incremental, started := 0, 0
	for round := range rounds {
		for range random.IntN(4) {
			pattern, off, n := 1+random.IntN(250), random.Int64N(size/512-200)*512, 512*(1+random.Int64N(199))
			for _, d := range v.disks {
				if v.process() {
					v.write(d.id, pattern, off, n)
				} else {
					v.offWrite(d.id, d.format, pattern, off, n)
				}
			}
		}
		switch on := v.process(); {
		case on && random.IntN(6) == 0:
			v.kill()
		case on && random.IntN(2) == 0:
			v.quit()
		case !on && random.IntN(2) == 0:
			v.boot()
		}
		what, fail := fmt.Sprintf("round %d, on %v", round, v.process()), random.IntN(4) == 0
		if v.process() {
			must(t, b.run(fail))
		} else {
			if random.IntN(5) == 0 {
				b.during = v.boot
			}
			err := b.runOff(fail)
			if (b.during != nil) != errors.Is(err, ErrVMStarted) || err != nil && b.during == nil {
				t.Fatalf("%s: %v", what, err)
			}
			if b.during != nil {
				b.during, fail = nil, true
				started++
			}
		}
		if fail {
			continue
		}
		if b.decisions["vda"].Incremental {
			incremental++
		}
		b.same(what)
	}
	t.Logf("%d of %d rounds were incremental, %d were disturbed", incremental, rounds, started)
	if incremental < rounds/4 {
		t.Errorf("only %d of %d rounds were incremental", incremental, rounds)
	}
}
