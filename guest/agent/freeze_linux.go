package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel does (fs/ioctl.c, fs/super.c) and what follows from it:
//
//   - FIFREEZE blocks new writers, waits for those that are in a call, flushes
//     everything, and has the filesystem write its log. It cannot be
//     interrupted: on a slow or dead disk it returns when it is through, and
//     then the filesystem is frozen, whoever still wants that. Hence the
//     goroutine of each call, which thaws at once what came too late.
//   - The flushing is done by syncfs before, for then writers still run.
//   - EBUSY: it is frozen already, by somebody else. It is theirs to thaw.
//     EOPNOTSUPP: this kind of filesystem cannot be frozen.
//   - FITHAW of what is not frozen gives EINVAL and does nothing. It thaws what
//     anybody froze, so it is asked for only what FIFREEZE gave us.
//   - A frozen filesystem stays so when its file is closed and when the process
//     ends.
//
// As qemu-ga does (qga/commands-linux.c) the filesystem that was mounted last is
// frozen first, and thawed last: it may lie on another's file in a way that
// nobody can see, as with a block device that a program serves.

// ioctls of linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// linux is the real kernel.
type linux struct{}

func (linux) Sync(fd int) error   { return untilDone(func() error { return unix.Syncfs(fd) }) }
func (linux) Freeze(fd int) error { return ioctl(fd, fiFreeze) }
func (linux) Thaw(fd int) error   { return ioctl(fd, fiThaw) }

func ioctl(fd int, request uint) error {
	return untilDone(func() error { return unix.IoctlSetInt(fd, request, 0) })
}

func untilDone(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// thawPatience is how long one filesystem's thaw is waited for before the next
// one's: its first write may go to a disk that answers slowly.
const thawPatience = 2 * time.Second

// freezing is one freeze of the filesystems and its thaw.
type freezing struct {
	of     *filesystems
	kernel kernel
	all    []*superblock // with reasons, in the order of mounting
	set    []*superblock // to be frozen, in that order

	mu     sync.Mutex
	over   bool            // thaw was called: what is frozen from now on is thawed at once
	frozen map[string]bool // by dev
	calls  sync.WaitGroup  // in the kernel
}

// begin opens what is to be frozen. The caller closes it.
func (f *filesystems) begin(ctx context.Context) (*freezing, error) {
	all, err := f.look(ctx)
	if err != nil {
		return nil, err
	}
	z := &freezing{of: f, kernel: f.kernel, all: all, frozen: map[string]bool{}}
	for _, s := range all {
		if s.fd < 0 {
			continue
		}
		if since, stuck := f.isStuck(s.dev); stuck {
			z.close()
			return nil, fmt.Errorf("%w: a call for %s (%s) has not come back since %s; its disk does not answer", errStuck, s.name(), s.mounts[0].source, since.Format(time.TimeOnly))
		}
		z.set = append(z.set, s)
	}
	return z, nil
}

func (f *filesystems) isStuck(dev string) (time.Time, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	since, ok := f.stuck[dev]
	return since, ok
}

// devices gives the numbers of what is to be frozen, to be noted for whoever
// has to thaw it if this process dies.
func (z *freezing) devices() []string {
	all := []string{} // nil would mean all that there are
	for _, s := range z.set {
		all = append(all, s.dev)
	}
	return all
}

// stuckDevices gives those on which a call has not returned.
func (z *freezing) stuckDevices() []string {
	var all []string
	for _, s := range z.set {
		if _, stuck := z.of.isStuck(s.dev); stuck {
			all = append(all, s.dev)
		}
	}
	return all
}

// call makes one call for a filesystem on its own goroutine, and gives what it
// gave on a channel.
func (z *freezing) call(s *superblock, call func() error) <-chan error {
	done := make(chan error, 1)
	z.calls.Add(1)
	z.of.mu.Lock()
	z.of.stuck[s.dev] = time.Now()
	z.of.mu.Unlock()
	go func() {
		defer z.calls.Done()
		err := call()
		z.of.mu.Lock()
		delete(z.of.stuck, s.dev)
		z.of.mu.Unlock()
		done <- err
	}()
	return done
}

// sync has the filesystems write what is to be written, all at a time, while
// nothing stands yet.
func (z *freezing) sync(ctx context.Context) error {
	var waits []<-chan error
	for _, s := range z.set {
		waits = append(waits, z.call(s, func() error { return z.kernel.Sync(s.fd) }))
	}
	for i, done := range waits {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("sync %s: %w; its disk or its filesystem is damaged: see the kernel's log", z.set[i].name(), err)
			}
		case <-ctx.Done():
			return fmt.Errorf("sync %s: %w", z.set[i].name(), ctx.Err())
		}
	}
	return nil
}

// freeze freezes them, and gives how many are frozen. After an error some may
// be: the caller thaws.
func (z *freezing) freeze(ctx context.Context) (int, error) {
	for _, s := range slices.Backward(z.set) {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		done := z.call(s, func() error { return z.freezeOne(s) })
		var err error
		select {
		case err = <-done:
		case <-ctx.Done():
			err = fmt.Errorf("%w: its disk is slow, or a program hangs in a write", ctx.Err())
		}
		switch {
		case err == nil:
		case errors.Is(err, unix.EOPNOTSUPP):
			s.reason = fmt.Sprintf("this kernel cannot freeze %s", s.mounts[0].kind)
		case errors.Is(err, unix.EBUSY):
			return 0, fmt.Errorf("freeze %s: somebody else has frozen it: is another backup running in the guest? `fsfreeze -u %s` thaws it", s.name(), s.name())
		default:
			return 0, fmt.Errorf("freeze %s: %w", s.name(), err)
		}
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.over {
		return 0, errOver
	}
	return len(z.frozen), nil
}

// freezeOne freezes one filesystem, and thaws it if that came too late.
func (z *freezing) freezeOne(s *superblock) error {
	z.mu.Lock()
	over := z.over
	z.mu.Unlock()
	if over {
		return errOver
	}
	if err := z.kernel.Freeze(s.fd); err != nil {
		return err
	}
	z.mu.Lock()
	if !z.over {
		z.frozen[s.dev] = true
		z.mu.Unlock()
		return nil
	}
	z.mu.Unlock()
	if err := z.kernel.Thaw(s.fd); err != nil {
		return fmt.Errorf("%w, and %w", errOver, err)
	}
	return errOver
}

// stands says whether a filesystem is frozen, or cannot change anyway.
func (z *freezing) stands(s *superblock) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return s.still || z.frozen[s.dev]
}

// thaw thaws what freeze froze, in the reverse order, and has what is still
// being frozen thawed when that is done. It gives how many were thawed, and an
// error that says which did not stand until now, or still stand.
func (z *freezing) thaw() (thawed int, err error) {
	z.mu.Lock()
	z.over = true
	frozen := z.frozen
	z.frozen = map[string]bool{}
	z.mu.Unlock()
	var troubles []error
	var late []*superblock
	var lateCalls []<-chan error
	result := func(s *superblock, err error) {
		switch {
		case err == nil:
			thawed++
		case errors.Is(err, unix.EINVAL):
			troubles = append(troubles, fmt.Errorf("%s did not stand any more: somebody else thawed it", s.name()))
		default:
			troubles = append(troubles, fmt.Errorf("thaw %s: %w; `fsfreeze -u %s` may help", s.name(), err, s.name()))
		}
	}
	for _, s := range z.set {
		if !frozen[s.dev] {
			continue
		}
		done := z.call(s, func() error { return z.kernel.Thaw(s.fd) })
		select {
		case err := <-done:
			result(s, err)
		case <-time.After(thawPatience):
			late, lateCalls = append(late, s), append(lateCalls, done)
		}
	}
	deadline := time.After(thawPatience)
	for i, done := range lateCalls {
		select {
		case err := <-done:
			result(late[i], err)
		case <-deadline:
			troubles = append(troubles, fmt.Errorf("thaw %s: it does not return; its disk does not answer", late[i].name()))
		}
	}
	return thawed, errors.Join(troubles...)
}

// wait waits until the kernel has returned from all calls.
func (z *freezing) wait() { z.calls.Wait() }

// close closes what look opened, when the kernel has returned from all calls.
func (z *freezing) close() {
	go func() {
		z.wait()
		for _, s := range z.all {
			if s.fd >= 0 {
				_ = unix.Close(s.fd) // a directory that was read
			}
		}
	}()
}

// thawLeft thaws the filesystems with these devices, which an agent that was
// killed may have left frozen; nil means all that can be frozen. It gives
// the names of those that stood.
func (f *filesystems) thawLeft(ctx context.Context, devices []string) (thawed []string, err error) {
	all, err := f.look(ctx)
	if err != nil {
		return nil, err
	}
	var troubles []error
	for _, s := range all {
		if devices != nil && !slices.Contains(devices, s.dev) {
			continue
		}
		if s.fd < 0 {
			if devices != nil {
				troubles = append(troubles, fmt.Errorf("thaw %s: %s", s.name(), s.reason))
			}
			continue
		}
		done := make(chan error, 1)
		go func() {
			done <- f.kernel.Thaw(s.fd)
			_ = unix.Close(s.fd) // a directory that was read
		}()
		var err error
		select {
		case err = <-done:
		case <-time.After(thawPatience):
			err = errors.New("it does not return; its disk does not answer")
		}
		switch {
		case err == nil:
			thawed = append(thawed, s.name())
		case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP):
			troubles = append(troubles, fmt.Errorf("thaw %s: %w", s.name(), err))
		}
	}
	return thawed, errors.Join(troubles...)
}
