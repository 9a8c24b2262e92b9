package receive

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// States of a put in the journal; see the package comment.
const (
	staging    = "staging"
	exchanging = "exchanging"
	done       = "done"
)

// journal is a put that is under way, on a disk of the guest. Part of the
// on-disk format of an agent's state: an agent reads what an older one left.
type journal struct {
	file string

	State  string         `json:"state"`
	Places []journalPlace `json:"places"`
}

// journalPlace is one target.
type journalPlace struct {
	Dir   []byte `json:"dir"`           // path of the folder that the target is in
	Inode uint64 `json:"inode"`         // of it
	Stage string `json:"stage"`         // name of the folder beside the target
	Name  []byte `json:"name"`          // the target's
	New   uint64 `json:"new,omitempty"` // inode of what is put there
}

const journalPrefix = "put-"

// maxJournal bounds what is read of one, bytes.
const maxJournal = 1 << 20

// newJournal notes a put before anything is made.
func newJournal(state string, places []*place) (*journal, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	name := hex.EncodeToString(random[:])
	j := &journal{file: filepath.Join(state, journalPrefix+name), State: staging}
	for i, p := range places {
		j.Places = append(j.Places, journalPlace{Dir: []byte(p.dirPath), Inode: p.inode, Stage: fmt.Sprintf(".%s-%d%s", name, i, suffix), Name: []byte(p.name)})
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("note what is begun: %w", err)
	}
	return j, j.write()
}

// write makes the journal durable.
func (j *journal) write() error {
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if err := j.replace(b); err != nil {
		_ = os.Remove(j.file + ".tmp") // err is what counts
		return fmt.Errorf("note what is begun in the guest: %w", err)
	}
	return nil
}

func (j *journal) replace(b []byte) error {
	f, err := os.OpenFile(j.file+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(j.file+".tmp", j.file); err != nil {
		return err
	}
	return syncDir(filepath.Dir(j.file))
}

func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// remove forgets a put of which nothing is left.
func (j *journal) remove() error {
	err := os.Remove(j.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// readJournals gives the puts that were under way when an agent ended. A
// journal that was never whole belongs to a put that had not begun.
func readJournals(state string) ([]*journal, error) {
	files, err := filepath.Glob(filepath.Join(state, journalPrefix+"*"))
	if err != nil {
		return nil, err
	}
	var list []*journal
	var failed error
	for _, name := range files {
		if filepath.Ext(name) == ".tmp" {
			failed = errors.Join(failed, os.Remove(name))
			continue
		}
		j, err := readJournal(name)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w: look for folders that end in %s, and remove both", name, err, suffix))
			continue
		}
		list = append(list, j)
	}
	return list, failed
}

func readJournal(name string) (*journal, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxJournal {
		return nil, fmt.Errorf("a journal of %d bytes", st.Size())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	j := &journal{file: name}
	return j, json.Unmarshal(b, j)
}
