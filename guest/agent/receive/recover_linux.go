package receive

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cairn/guest"
)

// recoverAll undoes, or ends, what an agent that was killed had begun. It says
// in words what it did.
func recoverAll(state string) (notes []string) {
	list, err := readJournals(state)
	if err != nil {
		notes = append(notes, err.Error())
	}
	for _, j := range list {
		if err := j.recover(); err != nil {
			notes = append(notes, fmt.Sprintf("files that were being put back when the agent ended: %v; it is tried again at the next start, until %s is removed", err, j.file))
			continue
		}
		what := "removed what was written of files that were being put back"
		if j.State == done {
			what = "removed what was replaced by files that were put back"
		}
		notes = append(notes, fmt.Sprintf("%s when the agent ended (%d targets)", what, len(j.Places)))
	}
	return notes
}

func (j *journal) recover() error {
	if len(j.Places) > guest.MaxPutTargets {
		return fmt.Errorf("%d targets", len(j.Places))
	}
	// When all is in place already the put is done: a service may have been
	// started on it since, by the guest's boot for one.
	if j.State == exchanging && j.allExchanged() {
		j.State = done
		if err := j.write(); err != nil {
			return err
		}
	}
	var failed error
	for i := len(j.Places) - 1; i >= 0; i-- { // as takeAllBack
		if err := j.Places[i].recover(j.State == exchanging); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%q: %w", j.Places[i].Dir, err))
		}
	}
	if failed != nil {
		return failed
	}
	return j.remove()
}

// allExchanged says whether at each target there is what was put.
func (j *journal) allExchanged() bool {
	for i := range j.Places {
		jp := &j.Places[i]
		fd, real, err := openDir(string(jp.Dir))
		if err != nil {
			return false
		}
		p, err := placeIn(fd, real, string(jp.Name))
		if err != nil {
			return false
		}
		there, err := inode(p.dir, p.name)
		same := err == nil && p.inode == jp.Inode && jp.New != 0 && there == jp.New
		p.close()
		if !same {
			return false
		}
	}
	return len(j.Places) > 0
}

func (jp *journalPlace) recover(exchanging bool) error {
	fd, real, err := openDir(string(jp.Dir))
	if err != nil {
		return err
	}
	p, err := placeIn(fd, real, string(jp.Name))
	if err != nil {
		return err
	}
	defer p.close()
	if p.inode != jp.Inode {
		return errors.New("it is another folder now")
	}
	s := &stage{place: p, name: jp.Stage, links: -1, top: -1}
	s.dir, err = unix.Openat(p.dir, s.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // it was not made yet, or is removed already
	}
	if err != nil {
		return err
	}
	defer s.close()
	var st unix.Stat_t
	if err := unix.Fstat(s.dir, &st); err != nil {
		return err
	}
	s.inode = st.Ino
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%q belongs to user %d: somebody else made it", s.path(), st.Uid)
	}
	if exchanging {
		if err := s.takeBack(jp.New); err != nil {
			return err
		}
	}
	return s.remove()
}
