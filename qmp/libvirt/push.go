package libvirt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"cairn/qmp"
	"cairn/qmp/nbd"
)

// pushStall is how long QEMU may copy nothing.
const pushStall = 2 * time.Minute

// serverTimeout bounds the start of qemu-nbd, all tries of it.
const serverTimeout = 20 * time.Second

// depthContext tells what an image holds itself: depth 1, the bit that also
// means dirty. What it does not hold has depth 2, in the image below, or 0.
const depthContext = "qemu:allocation-depth"

// awaitPush waits until QEMU has copied the point in time.
func (f *Fleece) awaitPush(ctx context.Context) error {
	last, moved := uint64(0), f.opt.Now()
	for {
		ours, err := f.d.ourJob(ctx)
		if err != nil {
			return err
		}
		if !ours {
			return f.explain(f.pushResult(ctx))
		}
		var copied uint64
		err = f.d.conn.ask(ctx, "ask for the backup's progress", func(l *golibvirt.Libvirt) (err error) {
			_, _, _, _, _, _, _, _, _, _, copied, _, err = l.DomainGetJobInfo(f.d.dom)
			return err
		})
		if err != nil && code(err) == 0 {
			return err
		}
		if copied != last {
			last, moved = copied, f.opt.Now()
		}
		if f.opt.Now().Sub(moved) > pushStall {
			return fmt.Errorf("libvirt: QEMU has copied nothing for %v: is the scratch space too slow?", pushStall)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pushResult says how the copying ended. Without the word of success the files
// are not read.
func (f *Fleece) pushResult(ctx context.Context) error {
	var kind int32
	var params []golibvirt.TypedParam
	err := f.d.conn.ask(ctx, "ask how the backup ended", func(l *golibvirt.Libvirt) (err error) {
		flags := golibvirt.DomainJobStatsCompleted | golibvirt.DomainJobStatsKeepCompleted
		kind, params, err = l.DomainGetJobStats(f.d.dom, flags)
		return err
	})
	if err != nil {
		return err
	}
	operation, message := int32(0), ""
	for _, p := range params {
		switch v := p.Value.I.(type) {
		case int32:
			if p.Field == golibvirt.DomainJobOperationStr {
				operation = v
			}
		case string:
			if p.Field == golibvirt.DomainJobErrmsg {
				message = ": " + v
			}
		}
	}
	if golibvirt.DomainJobType(kind) != golibvirt.DomainJobCompleted || golibvirt.DomainJobOperation(operation) != golibvirt.DomainJobOperationStrBackup {
		return fmt.Errorf("libvirt: QEMU did not copy the disks to the end%s: %w", message, qmp.ErrFleeceBroken)
	}
	return nil
}

// pushed opens the file that QEMU wrote of a disk.
func (f *Fleece) pushed(ctx context.Context, fd qmp.FleeceDisk) (qmp.Source, error) {
	server, err := serveImage(ctx, f.file(fd.Disk), filepath.Join(f.dir, fd.Disk.Name+".sock"))
	if err != nil {
		return nil, err
	}
	f.images = append(f.images, server)
	s := source{Pull: &qmp.Pull{Name: fd.Disk.Name}, f: f, files: true}
	if s.Data, err = f.dial(ctx, server.socket, "", nbd.BaseAllocation); err != nil {
		return nil, server.failed(err)
	}
	if err := checkSize(s.Data, fd.Disk); err != nil {
		return nil, err
	}
	if !f.incremental(fd) {
		return s, nil
	}
	s.Context = depthContext
	if s.Dirty, err = f.dial(ctx, server.socket, "", s.Context); err != nil {
		return nil, server.failed(err)
	}
	return s, s.count(ctx)
}

// imageServer is a qemu-nbd that serves one file. It dies with this process.
type imageServer struct {
	socket string
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
}

// serveImage starts one, and waits until its socket takes connections. libvirt
// calls a backup completed a moment before QEMU lets go of the file, so that
// the first servers may find it locked.
func serveImage(ctx context.Context, file, socket string) (*imageServer, error) {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	for {
		s, err := startServer(ctx, file, socket)
		if !errors.Is(err, errServerEnded) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// errServerEnded: qemu-nbd did not want to serve the file.
var errServerEnded = errors.New("qemu-nbd ended")

// startServer starts a server once. The image is opened without the one below
// it, which is the running VM's.
func startServer(ctx context.Context, file, socket string) (*imageServer, error) {
	program, err := exec.LookPath("qemu-nbd")
	if err != nil {
		return nil, fmt.Errorf("reading what QEMU has copied needs qemu-nbd (Debian: qemu-utils): %w", err)
	}
	image, err := json.Marshal(map[string]any{"driver": "qcow2", "backing": nil, "file": map[string]string{"driver": "file", "filename": file}})
	if err != nil {
		return nil, err
	}
	s := &imageServer{socket: socket, ended: make(chan struct{})}
	s.cmd = exec.Command(program, "--read-only", "--persistent", "--shared=8", "--allocation-depth", "--socket="+socket, "json:"+string(image)) //nolint:noctx // stop ends it
	s.cmd.Stderr = &s.stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() { // Pdeathsig is of the thread: it must live as long
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(s.ended)
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // stderr tells
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start qemu-nbd: %w", err)
	}
	if err := s.await(ctx); err != nil {
		s.stop()
		return nil, s.failed(err)
	}
	return s, nil
}

// await waits for the server's greeting.
func (s *imageServer) await(ctx context.Context) error {
	for {
		c, err := nbd.Dial(ctx, "unix", s.socket, "")
		if err == nil {
			return c.Close()
		}
		select {
		case <-s.ended:
			return errServerEnded
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends the server.
func (s *imageServer) stop() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.ended
}

// failed adds what the server said once it has ended.
func (s *imageServer) failed(err error) error {
	select {
	case <-s.ended:
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(s.stderr.Bytes()))
	default:
		return err
	}
}
