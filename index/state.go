package index

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"
)

// stateVersion names the layout of everything in the index's directory.
const stateVersion = 1

// Names in the index's directory.
const (
	stateName = "STATE"
	lockName  = "lock"
	dbName    = "db"
	listsName = "lists"
	asideName = "aside"
)

// maxState bounds STATE in bytes: some 100 for each of Badger's files, which
// hold 2 MiB each.
const maxState = 16 << 20

// fileHash is the BLAKE3 of a file's content.
type fileHash [32]byte

// describe gives the text of a STATE that fits the directory db:
//
//	cairn index state 1
//	file <name> <size in bytes> <BLAKE3 of its content>     each, by name
//	check <BLAKE3 of the lines above, keyed with the repository's index key>
//
// The index key belongs to one repository, so another's STATE never fits.
// STATE is not parsed: it is compared with what describe gives. hashes are
// those already known, by name, of files that do not change; it gets the rest.
func describe(db string, s *sealer, hashes map[string]fileHash) ([]byte, error) {
	entries, err := os.ReadDir(db)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "cairn index state %d\n", stateVersion)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not a file", filepath.Join(db, e.Name()))
		}
		h, ok := hashes[e.Name()]
		if !ok {
			if h, err = hashFile(filepath.Join(db, e.Name())); err != nil {
				return nil, err
			}
			hashes[e.Name()] = h
		}
		fmt.Fprintf(&b, "file %s %d %x\n", e.Name(), info.Size(), h)
	}
	sum := s.sum(b.Bytes())
	fmt.Fprintf(&b, "check %s\n", hex.EncodeToString(sum[:]))
	return b.Bytes(), nil
}

// hashFile reads with plain reads: a mapping would count as our memory.
func hashFile(name string) (out fileHash, err error) {
	f, err := os.Open(name)
	if err != nil {
		return out, err
	}
	defer f.Close()
	h := blake3.New()
	if _, err := io.CopyBuffer(onlyWriter{h}, f, make([]byte, 256<<10)); err != nil {
		return out, err
	}
	h.Sum(out[:0])
	return out, nil
}

// onlyWriter keeps io.Copy from finding other ways than the given buffer.
type onlyWriter struct{ io.Writer }

// isTable says whether a file of Badger's never changes once it is there.
func isTable(name string) bool { return strings.HasSuffix(name, ".sst") }

// checkState says whether dir is what the last clean Close left, and gives
// the hashes of the tables. Why it is not is an error without consequences
// but a rebuild; it is iofs.ErrNotExist when there is no STATE.
func checkState(dir string, s *sealer) (map[string]fileHash, error) {
	f, err := os.Open(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	got, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return nil, err
	}
	hashes := map[string]fileHash{}
	want, err := describe(filepath.Join(dir, dbName), s, hashes)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(got, want) {
		return nil, errors.New("its files are not those that the last clean end left, or they belong to another repository")
	}
	for name := range hashes {
		if !isTable(name) {
			delete(hashes, name)
		}
	}
	return hashes, nil
}

// writeState says durably that dir is whole. hashes are those of tables that
// checkState gave.
func writeState(dir string, s *sealer, hashes map[string]fileHash) error {
	text, err := describe(filepath.Join(dir, dbName), s, hashes)
	if err != nil {
		return err
	}
	if len(text) > maxState {
		return fmt.Errorf("a STATE of %d bytes", len(text))
	}
	f, err := os.CreateTemp(dir, stateName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, stateName)); err != nil {
		return err
	}
	return syncDir(dir)
}

// removeState takes STATE away durably: from here on a crash means a rebuild.
func removeState(dir string) error {
	err := os.Remove(filepath.Join(dir, stateName))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// setAside moves Badger's directory away, over the one that was moved before.
func setAside(dir string) error {
	db, aside := filepath.Join(dir, dbName), filepath.Join(dir, asideName)
	if entries, err := os.ReadDir(db); errors.Is(err, iofs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	if err := os.Rename(db, aside); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
