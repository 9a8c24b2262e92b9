package receive

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cairn/guest"
)

// errNotBack says that something of what was replaced is still in a stage, which
// must not be removed.
var errNotBack = errors.New("what was replaced could not be put back; the agent tries it again when it starts")

// exchangeAll puts every tree in its place, durably, or none.
func exchangeAll(j *journal, stages []*stage, keepBoth bool) error {
	for i, s := range stages {
		ino, err := inode(s.dir, newName)
		if err != nil {
			return err
		}
		j.Places[i].New = ino
		if err := s.keepTimes(); err != nil {
			return err
		}
	}
	j.State = exchanging
	if err := j.write(); err != nil {
		return err
	}
	for i, s := range stages {
		if err := s.exchange(keepBoth); err != nil {
			return errors.Join(err, takeAllBack(j, stages[:i+1]))
		}
	}
	err := syncPlaces(stages)
	if err == nil {
		j.State = done
		err = j.write()
	}
	if err != nil {
		return errors.Join(err, takeAllBack(j, stages))
	}
	return nil
}

func syncPlaces(stages []*stage) error {
	for _, s := range stages {
		if err := unix.Fsync(s.place.dir); err != nil {
			return fmt.Errorf("sync the folder %q: %w", s.place.dirPath, err)
		}
	}
	return nil
}

// exchange gives the new tree the target's name; what had it is in the stage
// then.
func (s *stage) exchange(keepBoth bool) error {
	p := s.place
	var err error
	for range 3 { // others may make and remove what has the name
		var there uint64
		if there, err = inode(p.dir, p.name); err != nil {
			break
		}
		if there == 0 {
			err = s.rename(unix.RENAME_NOREPLACE)
		} else if keepBoth {
			return refuse(guest.CodeExists, "%q has appeared meanwhile: remove it, and put it again", p.path())
		} else {
			err = s.rename(unix.RENAME_EXCHANGE)
		}
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	switch {
	case err == nil:
		return s.setTimesAgain()
	case errors.Is(err, unix.EINVAL):
		return refuse(guest.CodeUnsupported, "the filesystem at %q cannot exchange two names in one step: use --keep-both, and rename it yourself", p.dirPath)
	case errors.Is(err, unix.EBUSY):
		return refuse(guest.CodeBusy, "%q cannot be exchanged: something is mounted there in the guest", p.path())
	}
	return fmt.Errorf("put %q in place: %w", p.path(), err)
}

// keepTimes opens a new directory and remembers its times: some filesystems
// (XFS) count an exchange as a change of the directory itself.
func (s *stage) keepTimes() error {
	fd, err := unix.Openat(s.dir, newName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	s.top = fd
	return unix.Fstat(fd, &s.was)
}

// setTimesAgain undoes that, through the directory that is open already: its
// name may be somebody else's by now.
func (s *stage) setTimesAgain() error {
	if s.top < 0 {
		return nil
	}
	name := fmt.Sprintf("/proc/self/fd/%d", s.top)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{s.was.Atim, s.was.Mtim}, 0); err != nil {
		return fmt.Errorf("set the times of %q: %w", s.place.path(), err)
	}
	return unix.Fsync(s.top)
}

// rename renames between the stage and the target.
func (s *stage) rename(flags uint) error {
	err := unix.Renameat2(s.dir, newName, s.place.dir, s.place.name, flags)
	if errors.Is(err, unix.EINVAL) && flags == unix.RENAME_NOREPLACE {
		// Nothing is there, or was a moment ago.
		return unix.Renameat(s.dir, newName, s.place.dir, s.place.name)
	}
	return err
}

func takeAllBack(j *journal, stages []*stage) error {
	var failed error
	for i := len(stages) - 1; i >= 0; i-- {
		failed = errors.Join(failed, stages[i].takeBack(j.Places[i].New))
	}
	if failed != nil {
		failed = errors.Join(errNotBack, failed)
	}
	return failed
}

// takeBack undoes exchange, if it was done: it goes by the inode of the new
// tree.
func (s *stage) takeBack(newInode uint64) error {
	p := s.place
	there, err := inode(p.dir, p.name)
	if err != nil || there != newInode || newInode == 0 {
		return err
	}
	before, err := inode(s.dir, newName)
	if err != nil {
		return err
	}
	if before == 0 {
		err = unix.Renameat(p.dir, p.name, s.dir, newName)
	} else {
		err = unix.Renameat2(p.dir, p.name, s.dir, newName, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return fmt.Errorf("take %q back: what was there is in %q: %w", p.path(), s.path()+"/"+newName, err)
	}
	return unix.Fsync(p.dir)
}
