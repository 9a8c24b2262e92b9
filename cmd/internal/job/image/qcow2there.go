package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"cairn/qmp"
	"cairn/qmp/nbd"
)

// serverTimeout bounds how long qemu-nbd may take to begin, to answer and to end.
const serverTimeout = time.Minute

// prepareQCOW2 refuses a qcow2 that cannot take a disk of size bytes, and
// removes Cairn's bitmaps from it, of whatever repository: after a restore none
// of them tells what changed since its point. It gives their names.
func prepareQCOW2(ctx context.Context, path string, size int64) ([]string, error) {
	out, err := QEMUImg(ctx, "info", "--output=json", "-f", "qcow2", "--", path)
	if err != nil {
		return nil, err
	}
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
		Specific    struct {
			Data struct {
				Bitmaps []struct {
					Name string `json:"name"`
				} `json:"bitmaps"`
				Encrypt json.RawMessage `json:"encrypt"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("qemu-img info %s: %w", path, err)
	}
	switch {
	case info.VirtualSize != whole512(size):
		return nil, fmt.Errorf("%s is a qcow2 of %d bytes and the disk has %d: qemu-img resize it, or restore to a new file", path, info.VirtualSize, size)
	case info.Specific.Data.Encrypt != nil:
		return nil, fmt.Errorf("%s is an encrypted qcow2, which --delta cannot write: restore to a new file", path)
	}
	var removed []string
	for _, b := range info.Specific.Data.Bitmaps {
		if !qmp.IsOurBitmap(b.Name) {
			continue
		}
		if _, err := QEMUImg(ctx, "bitmap", "--remove", "-f", "qcow2", "--", path, b.Name); err != nil {
			return removed, fmt.Errorf("remove the bitmap %s, or the next backup would believe it: %w", b.Name, err)
		}
		removed = append(removed, b.Name)
	}
	return removed, nil
}

// nbdTarget is an image that qemu-nbd serves to us alone.
type nbdTarget struct {
	conn   *nbd.Conn
	cmd    *exec.Cmd
	ended  chan error
	dir    string
	errs   *bytes.Buffer // complete when ended has told
	extent struct {
		list     []nbd.Extent
		from, to int64
	}
}

// openQCOW2 starts qemu-nbd on a qcow2. It takes QEMU's locks on the image, so
// that no VM can start on it, and ends when we do.
func openQCOW2(ctx context.Context, path string) (*nbdTarget, error) {
	t, err := serveQCOW2(ctx, path, "none")
	if err != nil && strings.Contains(err.Error(), "O_DIRECT") { // a filesystem without it
		t, err = serveQCOW2(ctx, path, "writeback")
	}
	return t, err
}

func serveQCOW2(ctx context.Context, path, cache string) (*nbdTarget, error) {
	dir, err := os.MkdirTemp("", "cairn-nbd-") // mode 0700: the socket is ours alone
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path) // a name like "json:…" is no path then
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	t := &nbdTarget{dir: dir, ended: make(chan error, 1), errs: new(bytes.Buffer)}
	socket := filepath.Join(dir, "nbd")
	// Not with the context: it must close the image well. It ends with our
	// connection, also when we are killed.
	t.cmd = exec.Command("qemu-nbd", "--format=qcow2", "--cache="+cache, "--discard=unmap", "--socket="+socket, "--", abs)
	t.cmd.Stderr = t.errs
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us to handle
	if err := t.cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = errors.New("a restore into a qcow2 needs qemu-nbd: apt install qemu-utils")
		}
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	go func() { t.ended <- t.cmd.Wait() }() // close or the loop below waits for it
	for deadline := time.Now().Add(serverTimeout); ; time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-t.ended:
			return nil, errors.Join(fmt.Errorf("qemu-nbd %s: %w: %s", path, err, bytes.TrimSpace(t.errs.Bytes())), os.RemoveAll(dir))
		default:
		}
		if _, err := os.Stat(socket); err == nil {
			if t.conn, err = nbd.Dial(ctx, "unix", socket, "", nbd.BaseAllocation); err == nil {
				return t, nil
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			_ = t.cmd.Process.Kill() // nothing was written
			<-t.ended
			return nil, errors.Join(fmt.Errorf("qemu-nbd %s does not answer: %w", path, errors.Join(ctx.Err(), io.ErrNoProgress)), os.RemoveAll(dir))
		}
	}
}

func (t *nbdTarget) ReadAt(p []byte, off int64) (int, error)  { return t.conn.ReadAt(p, off) }
func (t *nbdTarget) WriteAt(p []byte, off int64) (int, error) { return t.conn.WriteAt(p, off) }
func (t *nbdTarget) zero(off, n int64) error                  { return t.conn.Zero(off, n) }
func (t *nbdTarget) settle() error                            { return t.conn.Flush() }

// extentWindow is how much of the disk is asked about at once, bytes.
const extentWindow = 1 << 30

// nextData is called by one goroutine at a time, with offsets that grow.
func (t *nbdTarget) nextData(off int64) (int64, error) {
	e := &t.extent
	for off < t.conn.Size() {
		if off < e.from || off >= e.to {
			e.list, e.from, e.to = e.list[:0], off, min(off+extentWindow, t.conn.Size())
			ctx, cancel := context.WithTimeout(context.Background(), serverTimeout)
			err := t.conn.Extents(ctx, nbd.BaseAllocation, e.from, e.to-e.from, func(x nbd.Extent) error {
				if x.Flags&nbd.FlagZero == 0 {
					e.list = append(e.list, x)
				}
				return nil
			})
			cancel()
			if err != nil {
				e.from, e.to = 0, 0
				return 0, err
			}
		}
		for len(e.list) > 0 && e.list[0].End() <= off {
			e.list = e.list[1:]
		}
		if len(e.list) > 0 {
			return max(off, e.list[0].Offset), nil
		}
		off = e.to
	}
	return 0, io.EOF
}

// close ends the connection, and qemu-nbd with it.
func (t *nbdTarget) close() error {
	err := t.conn.Close()
	select {
	case werr := <-t.ended:
		if werr != nil {
			err = errors.Join(err, fmt.Errorf("qemu-nbd: %w: %s", werr, bytes.TrimSpace(t.errs.Bytes())))
		}
	case <-time.After(serverTimeout):
		_ = t.cmd.Process.Kill() // all was flushed
		<-t.ended
		err = errors.Join(err, errors.New("qemu-nbd did not end and was killed"))
	}
	return errors.Join(err, os.RemoveAll(t.dir))
}
