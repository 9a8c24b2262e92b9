package push

import (
	"context"
	"errors"
	"fmt"
	"path"

	"cairn/fs/tree"
	"cairn/guest"
	"cairn/guest/archive"
	"cairn/guest/filesystem"
)

// sender is a tree.Sink that writes what it is shown into a stream.
type sender struct {
	ctx    context.Context
	view   *tree.View
	w      *archive.Writer
	buffer []byte
	above  string           // path of the folder that the tree is in
	result *guest.PutResult // for failures
	add    func(int64)      // bytes that were sent
	links  uint64           // highest link number of the trees before
	last   uint64           // and of this one
	broken error            // the stream
	said   bool             // what failed is in the stream already
	// unreadable are files that broke off. By their further names they are not
	// tried again: their bytes were counted once.
	unreadable map[tree.Node]error
}

// write writes a record. An ErrInvalid concerns this record only.
func (s *sender) write(r *archive.Record) error {
	err := s.w.Write(r)
	if err != nil && !errors.Is(err, archive.ErrInvalid) {
		s.broken = err
	}
	return err
}

// nextTree makes link numbers go on: each tree counts from 1.
func (s *sender) nextTree(above string) { s.links, s.above = s.last, above }

func (s *sender) failed(p string, why error) { s.result.Failed(path.Join(s.above, p), why) }

func (s *sender) link(i *tree.Item) uint64 {
	if i.Link == 0 {
		return 0
	}
	s.last = max(s.last, s.links+i.Link)
	return s.links + i.Link
}

// xattrs gives what can be read; the rest is a failure of its own.
func (s *sender) xattrs(i *tree.Item) []filesystem.Xattr {
	list, err := s.view.Tree().Xattrs(s.ctx, i.Node)
	if err != nil {
		s.failed(i.Path, fmt.Errorf("read extended attributes: %w", err))
	}
	return list
}

// Enter implements tree.Sink.
func (s *sender) Enter(i *tree.Item) error {
	return s.write(&archive.Record{Kind: archive.Enter, Name: i.Name})
}

// Leave implements tree.Sink. A directory that was entered must be left.
func (s *sender) Leave(i *tree.Item) error {
	r := &archive.Record{Kind: archive.Leave, Attr: i.Attr, Xattrs: s.xattrs(i)}
	err := s.write(r)
	if err == nil || s.broken != nil {
		return err
	}
	s.failed(i.Path, err)
	return s.write(&archive.Record{Kind: archive.Leave, Attr: filesystem.Attr{Mode: i.Attr.Mode, UID: i.Attr.UID, GID: i.Attr.GID}})
}

// Take implements tree.Sink.
func (s *sender) Take(i *tree.Item) error {
	r := &archive.Record{Name: i.Name, Link: s.link(i), Attr: i.Attr}
	if i.Again {
		r.Kind = archive.Link
		return s.write(r)
	}
	var err error
	switch i.Attr.Mode & filesystem.ModeType {
	case filesystem.ModeRegular:
		return s.file(i, r)
	case filesystem.ModeSymlink:
		r.Kind = archive.Symlink
		if r.Target, err = s.view.Target(s.ctx, i.Node); err != nil {
			return err
		}
	default:
		r.Kind = archive.Special
	}
	r.Xattrs = s.xattrs(i)
	return s.write(r)
}

// file sends a regular file.
func (s *sender) file(i *tree.Item, r *archive.Record) error {
	if err := s.unreadable[i.Node]; err != nil {
		return err
	}
	f, err := s.view.Tree().Open(s.ctx, i.Node)
	if err != nil {
		return err
	}
	r.Kind, r.Attr.Size, r.Xattrs = archive.File, f.Size(), s.xattrs(i)
	if err := s.write(r); err != nil {
		return err
	}
	err = tree.ReadData(s.ctx, f, s.buffer, func(off int64, data []byte) error {
		s.add(int64(len(data)))
		return s.write(&archive.Record{Kind: archive.Data, Offset: off, Data: data})
	})
	if err == nil {
		return s.write(&archive.Record{Kind: archive.End})
	}
	if s.broken == nil {
		s.unreadable[i.Node] = err
		s.said = s.write(&archive.Record{Kind: archive.Broken}) == nil
	}
	return err
}

// Failed implements tree.Sink.
func (s *sender) Failed(p string, why error) error {
	if s.broken != nil {
		return s.broken
	}
	s.failed(p, why)
	if s.said {
		s.said = false
		return nil
	}
	return s.write(&archive.Record{Kind: archive.Lost})
}
