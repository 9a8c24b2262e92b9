package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

const (
	manyDisks = 26
	manyRuns  = 20
	manySize  = "1G" // of each disk
)

// disks measures how long a VM with many disks stands still for a point. One of them is written to before each run,
// so that there is something to flush.
func (b *bench) disks(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.work, "m")
	if err != nil {
		return err
	}
	c := *b.cairn
	defer func() { err = firstError(err, c.End()) }()
	if err := c.Begin(ctx, dir); err != nil {
		return err
	}
	m, err := c.startMany(ctx)
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, m.stop()) }()
	allIncremental := true
	for n := range manyRuns + 1 { // the first is full
		if err := m.diskCommand(fmt.Sprintf("write -q -P %d %d 64k", n+1, n<<20)); err != nil {
			return err
		}
		v, sum, err := c.backup(ctx, m)
		if err != nil {
			return err
		}
		if n > 0 {
			b.add(0, "disks", c.Name(), v)
			allIncremental = allIncremental && sum.Read == "incremental" && sum.Dirty == 64<<10
		}
	}
	b.check("disks", "every further run was incremental and found what was written dirty", allIncremental, fmt.Sprintf("%d runs", manyRuns))
	return nil
}

// startMany starts a VM with empty disks.
func (c *cairn) startMany(ctx context.Context) (*machine, error) {
	var first string
	var more []string
	for i := range manyDisks {
		id := fmt.Sprintf("vd%c", 'a'+i)
		file := filepath.Join(c.dir, id+".qcow2")
		if _, err := run(ctx, command{path: "qemu-img", args: []string{"create", "-q", "-f", "qcow2", file, manySize}}); err != nil {
			return nil, err
		}
		if i == 0 { // the machine's own
			first = file
			continue
		}
		more = append(more, "-blockdev", "driver=file,node-name="+id+"-file,filename="+file+",discard=unmap",
			"-blockdev", "driver=qcow2,node-name="+id+",file="+id+"-file,discard=unmap",
			"-device", "virtio-blk-pci,drive="+id+",id="+id+"-dev,serial="+id)
	}
	return c.startOn(ctx, "many", first, manyUUID, more...)
}
