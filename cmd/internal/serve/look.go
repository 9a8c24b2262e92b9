package serve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/qmp"
)

// lookTimeout bounds a look at a VM.
const lookTimeout = 20 * time.Second

// Look looks at a VM: it asks its QEMU or libvirt. tags are the repositories by
// what bitmaps call them.
func Look(ctx context.Context, v config.VM, state string, tags map[string]string) (f Fact) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	defer func() { // it is no guest's data, and all the same from outside
		if p := recover(); p != nil {
			f.Problem = fmt.Sprintf("internal error: %v", p)
		}
	}()
	m, err := job.Look(ctx, JobVM(v), state)
	if errors.Is(err, job.ErrVMOff) {
		f.Off = true
		for _, d := range v.Disks {
			f.Images = append(f.Images, d.File)
		}
		return f
	}
	if err != nil {
		f.Problem = err.Error()
		return f
	}
	for _, d := range m.Disks {
		if len(d.Chain) > 0 {
			f.Images = append(f.Images, d.Chain[0])
		}
	}
	f.Known, f.Lost = map[string]int64{}, map[string]bool{}
	for tag, repo := range tags {
		total, any, lost := int64(0), false, false
		for _, d := range m.Disks {
			if d.Skip != "" || d.NoBitmaps != "" || slices.Contains(v.Exclude, d.Name) {
				continue
			}
			n, ok := recorded(d, tag)
			total, any, lost = total+n, true, lost || !ok
		}
		switch {
		case lost:
			f.Lost[repo] = true
		case any:
			f.Known[repo] = total
		}
	}
	return f
}

// recorded gives how much a repository's newest bitmap of a disk says has changed.
func recorded(d qmp.Disk, tag string) (n int64, ok bool) {
	for _, b := range d.Bitmaps {
		if span, ours := qmp.ParseBitmapName(b.Name); ours && span.Repo == tag && b.Recording && !b.Inconsistent {
			n, ok = b.Count, true
		}
	}
	return n, ok
}

// JobVM gives a VM as jobs know it.
func JobVM(v config.VM) job.VM {
	out := job.VM{Name: v.Name, QMP: v.QMP, Libvirt: v.Libvirt, Domain: v.Domain, Agent: v.Agent, Inside: v.Inside, Exclude: v.Exclude}
	for _, d := range v.Disks {
		out.Disks = append(out.Disks, job.VMDisk(d))
	}
	return out
}

// storages names what images lie on: a filesystem, a volume group, or a disk.
func storages(images []string) (list []string) {
	for _, image := range images {
		s := storage(image)
		if s != "" && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// storage names what an image lies on; "" if it cannot be told.
func storage(image string) string {
	if scheme, rest, ok := strings.Cut(image, "://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		return scheme + "://" + host
	}
	if pool, ok := strings.CutPrefix(image, "rbd:"); ok {
		pool, _, _ = strings.Cut(pool, "/")
		return "the pool " + pool
	}
	var st unix.Stat_t
	if !filepath.IsAbs(image) || unix.Stat(image, &st) != nil {
		return ""
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
		if name, err := os.ReadFile("/sys/dev/block/" + dev + "/dm/name"); err == nil {
			return "the volume group " + groupOf(strings.TrimSpace(string(name)))
		}
		return "the disk " + image
	}
	return "the filesystem of " + mountOf(image, uint64(st.Dev))
}

// groupOf gives the volume group of a device-mapper name: "vg-lv", in which each
// "-" of the names themselves is written twice.
func groupOf(name string) string {
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++
			continue
		}
		return strings.ReplaceAll(name[:i], "--", "-")
	}
	return name
}

// mountOf gives the topmost folder of a file's filesystem.
func mountOf(file string, dev uint64) string {
	at := filepath.Dir(file)
	for at != "/" {
		var st unix.Stat_t
		if unix.Stat(filepath.Dir(at), &st) != nil || uint64(st.Dev) != dev {
			break
		}
		at = filepath.Dir(at)
	}
	return at
}

// looksAtOnce bounds how many VMs are looked at at once.
const looksAtOnce = 4

// look looks at VMs, beside the loop.
func (d *Daemon) look(ctx context.Context) {
	for _, vm := range d.plan.Look {
		i := slices.IndexFunc(d.machines, func(m config.Machine) bool { return m.Name == vm })
		if d.looking[vm] || i < 0 || len(d.looking) >= looksAtOnce {
			continue
		}
		d.looking[vm] = true
		v, tags := d.machines[i].VM, maps.Clone(d.tags)
		at := d.Now()
		d.workers.Go(func() {
			f := Look(ctx, v, d.Dirs.State, tags)
			f.At = at
			d.post(func() { d.saw(v, f) })
		})
	}
}

func (d *Daemon) saw(v config.VM, f Fact) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.looking, v.Name)
	d.facts[v.Name] = f
	if f.Problem == "" {
		d.storages[v.Name] = storages(f.Images)
		for _, j := range d.config.Jobs {
			if j.When.OnShutdown && !f.Off && j.Fits(v) {
				d.seen.ran(j.Name, v.Name, true)
			}
		}
	}
}
