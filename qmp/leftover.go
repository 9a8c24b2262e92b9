package qmp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// goneTimeout bounds the wait for exports and jobs to be gone.
const goneTimeout = 30 * time.Second

// Leftover is an object of ours in QEMU.
type Leftover struct {
	Kind string // "export", "job", "node", "filter", "bitmap"
	Name string
	File string // node: its scratch file
	node string // bitmap: where it lies
}

func (l Leftover) String() string {
	s := l.Kind + " " + l.Name
	if l.File != "" {
		s += " (" + l.File + ")"
	}
	return s
}

// Leftovers lists what a dead run left in QEMU, of any repository: exports,
// jobs, nodes and temporary bitmaps with names of ours. The bitmaps that
// record are no leftovers.
func Leftovers(ctx context.Context, conn *Conn) ([]Leftover, error) {
	state, err := readBlockState(ctx, conn)
	if err != nil {
		return nil, err
	}
	return leftovers(ctx, conn, state)
}

func leftovers(ctx context.Context, conn *Conn, state *blockState) ([]Leftover, error) {
	var found []Leftover
	list, err := exports(ctx, conn)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if numbered(e.ID, prefixExport) {
			found = append(found, Leftover{Kind: "export", Name: e.ID})
		}
	}
	jobs, err := ourJobs(ctx, conn)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		found = append(found, Leftover{Kind: "job", Name: j.ID})
	}
	// In the order in which nodes can be deleted.
	for _, prefix := range []string{prefixPush, prefixMeta, prefixAccess, prefixFilter, prefixScratch} {
		for name := range state.nodes {
			if !numbered(name, prefix) {
				continue
			}
			l := Leftover{Kind: "node", Name: name}
			if prefix == prefixFilter {
				l.Kind = "filter"
			}
			if prefix == prefixScratch {
				l.File = state.nodes[name].Image.Filename
			}
			found = append(found, l)
		}
	}
	for node, n := range state.nodes {
		for _, b := range n.bitmaps() {
			if isMergedName(b.Name) {
				found = append(found, Leftover{Kind: "bitmap", Name: b.Name, node: node})
			}
		}
	}
	return found, nil
}

// jobInfo is an entry of query-jobs.
type jobInfo struct {
	ID     string `json:"id"`
	Status string `json:"status"` // "running", …; "concluded" jobs wait to be dismissed
	Error  string `json:"error"`  // of a concluded one, "" if it succeeded
}

// ourJobs lists jobs with names of ours.
func ourJobs(ctx context.Context, conn *Conn) ([]jobInfo, error) {
	var list []jobInfo
	if err := conn.run(ctx, queryJobs{}, &list); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(j jobInfo) bool { return !numbered(j.ID, prefixJob) }), nil
}

// Clean removes what Leftovers lists and the scratch files of dead runs, and
// says what it removed. Call it before Prepare, and never while another
// process reads a fleece of this VM.
//
// The NBD server of the dead run stays: Prepare takes it over. Stopping it
// could hang QEMU 7.2 if the dead run died in a handshake.
func Clean(ctx context.Context, conn *Conn) (removed []string, err error) {
	err = tearDown(ctx, conn, func() {}, func(what string) { removed = append(removed, what) })
	return removed, err
}

// tearDown removes all objects of ours from QEMU. abandon closes our NBD
// connections; it is called when all exports were told to go and before they
// are waited for: an earlier close kills QEMU 7.2 with a disk on an iothread,
// and a later one leaves the export waiting for a client that does not read.
func tearDown(ctx context.Context, conn *Conn, abandon func(), removed func(string)) error {
	sub := conn.Subscribe()
	defer sub.Close()
	state, err := readBlockState(ctx, conn)
	if err != nil {
		return err
	}
	found, err := leftovers(ctx, conn, state)
	if err != nil {
		return err
	}
	if err := deleteExports(ctx, conn, sub, found, abandon); err != nil {
		return err
	}
	if err := cancelJobs(ctx, conn, sub, found); err != nil {
		return err
	}
	var bitmaps []command
	for _, l := range found {
		switch l.Kind {
		case "filter":
			if err := state.takeOutFilter(ctx, conn, l.Name); err != nil {
				return err
			}
			err = conn.run(ctx, blockdevDel{l.Name}, nil)
		case "node":
			err = conn.run(ctx, blockdevDel{l.Name}, nil)
		case "bitmap":
			bitmaps = append(bitmaps, bitmapRemove{l.node, l.Name})
		}
		if err != nil {
			return err
		}
	}
	if len(bitmaps) > 0 {
		if err := conn.run(ctx, atomically(bitmaps), nil); err != nil {
			return err
		}
	}
	var failed error
	for _, l := range found {
		removed(l.String())
		if l.File != "" && scratchPath.MatchString(l.File) {
			failed = errors.Join(failed, removeScratchFile(l.File))
		}
	}
	return failed
}

// deleteExports tells all exports to go, calls abandon, and waits. If one of
// them refuses, abandon is not called: a live export whose client closes its
// connection is what kills a guest.
func deleteExports(ctx context.Context, conn *Conn, sub *Subscription, found []Leftover, abandon func()) error {
	told := false
	for _, l := range found {
		if l.Kind != "export" {
			continue
		}
		told = true
		if err := deleteExport(ctx, conn, l.Name); err != nil {
			return err
		}
	}
	abandon()
	if !told {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	err := waitGone(ctx, sub, func(ctx context.Context) (bool, error) {
		list, err := exports(ctx, conn)
		return !slices.ContainsFunc(list, func(e exportInfo) bool { return numbered(e.ID, prefixExport) }), err
	})
	if err != nil {
		return fmt.Errorf("waiting for the end of our exports: %w", err)
	}
	return nil
}

// deleteExport tells an export to go. QEMU refuses that if it was told before.
func deleteExport(ctx context.Context, conn *Conn, id string) error {
	refused := conn.run(ctx, blockExportDel{id, "hard"}, nil)
	if !isRefusal(refused) {
		return refused
	}
	list, err := exports(ctx, conn)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(e exportInfo) bool { return e.ID == id && !e.ShuttingDown }) {
		return refused
	}
	return nil
}

func cancelJobs(ctx context.Context, conn *Conn, sub *Subscription, found []Leftover) error {
	told := false
	for _, l := range found {
		if l.Kind != "job" {
			continue
		}
		told = true
		err := conn.run(ctx, blockJobCancel{l.Name, true}, nil)
		if err != nil && !isRefusal(err) {
			return err
		}
	}
	if !told {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	err := waitGone(ctx, sub, func(ctx context.Context) (bool, error) {
		jobs, err := ourJobs(ctx, conn)
		for _, j := range jobs {
			if j.Status == "concluded" {
				if err := conn.run(ctx, jobDismiss{j.ID}, nil); err != nil && !isRefusal(err) {
					return false, err
				}
			}
		}
		return len(jobs) == 0, err
	})
	if err != nil {
		return fmt.Errorf("waiting for the end of our jobs: %s: %w", strings.Join(jobNames(found), ", "), err)
	}
	return nil
}

func jobNames(found []Leftover) []string {
	var names []string
	for _, l := range found {
		if l.Kind == "job" {
			names = append(names, l.Name)
		}
	}
	return names
}
