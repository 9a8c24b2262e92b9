package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/guest/filesystem"
)

// TarOut writes what is at from, with everything in it, to w as a tar archive
// in the PAX format (POSIX.1-2001, pax(1)), below the name name: owners by
// number, modes, times to the nanosecond, hard links, device nodes, extended
// attributes as SCHILY.xattr.*, ACLs as SCHILY.acl.*, and holes as GNU tar's sparse
// format 1.0. tar --xattrs --xattrs-include='*' --acls brings all of it back.
//
// What cannot be read is a failure in the result and left out. A file that
// turns out to be damaged after its header was written ends the archive with
// an error: what follows could not be told from its contents.
func TarOut(ctx context.Context, v *View, from *Place, w io.Writer, name string, progress func(Copied)) (Copied, error) {
	return TarOutWith(ctx, v, from, w, name, TarOptions{Progress: progress})
}

// TarOptions say how TarOutWith writes. The zero value is TarOut's way.
type TarOptions struct {
	Progress func(Copied) // told after each file; nil: nobody is
	// Damaged says of an error whether it is of the file, and lasts. Then the
	// archive goes on: a file of up to 1 MiB is left out, of a larger one what
	// cannot be read is zeros; both are failures. nil: no error is.
	Damaged func(error) bool
	// Last gives a file that is put at the end of the archive, below its name;
	// with the name "" none is.
	Last func(Copied) (name string, body []byte)
}

// TarOutWith is TarOut with options.
func TarOutWith(ctx context.Context, v *View, from *Place, w io.Writer, name string, o TarOptions) (Copied, error) {
	t := &tarrer{ctx: ctx, view: v, out: w, w: tar.NewWriter(w), o: o, first: map[uint64]string{}, buffer: make([]byte, 1<<20)}
	if err := Visit(ctx, v, from, name, t); err != nil {
		return t.done, err
	}
	if o.Last != nil {
		if last, body := o.Last(t.done); last != "" {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: name + "/" + last, Mode: 0o644, Size: int64(len(body)), Format: tar.FormatPAX}
			if err := t.w.WriteHeader(h); err != nil {
				return t.done, err
			}
			if _, err := t.w.Write(body); err != nil {
				return t.done, err
			}
		}
	}
	return t.done, t.w.Close()
}

// tarrer is one TarOut: the Sink of a Visit.
type tarrer struct {
	ctx    context.Context
	view   *View
	out    io.Writer
	w      *tar.Writer
	o      TarOptions
	done   Copied
	first  map[uint64]string // by Item.Link
	buffer []byte
	fatal  error // ends the archive
	filled int64 // bytes of the file under way that could not be read
	hole   error // why the first of them could not
}

// Failed implements Sink.
func (t *tarrer) Failed(path string, err error) error {
	if t.fatal != nil {
		return fmt.Errorf("%s: %w", path, t.fatal)
	}
	t.done.fail(path, err)
	return nil
}

// Enter implements Sink.
func (t *tarrer) Enter(i *Item) error {
	h, err := t.header(i)
	if err != nil {
		return err
	}
	h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	t.done.Dirs++
	return t.write(h)
}

// Leave implements Sink.
func (t *tarrer) Leave(*Item) error { return nil }

// write writes a header; that it fails ends the archive.
func (t *tarrer) write(h *tar.Header) error {
	t.fatal = t.w.WriteHeader(h)
	if errors.Is(t.fatal, tar.ErrHeader) { // nothing was written
		err := t.fatal
		t.fatal = nil
		return err
	}
	return t.fatal
}

// header gives what all types have.
func (t *tarrer) header(i *Item) (*tar.Header, error) {
	a := &i.Attr
	h := &tar.Header{
		Format: tar.FormatPAX, Name: i.Path, Mode: int64(a.Mode & 0o7777), Uid: int(a.UID), Gid: int(a.GID),
		ModTime: tarTime(a.Mtime), AccessTime: tarTime(a.Atime), PAXRecords: map[string]string{},
	}
	if i.Again {
		return h, nil // its first name has them
	}
	xattrs, err := t.view.tree.Xattrs(t.ctx, i.Node)
	if err != nil {
		return nil, fmt.Errorf("extended attributes: %w", err)
	}
	for _, x := range xattrs {
		if strings.ContainsAny(x.Name, "=\x00") {
			t.done.lose(i.Path, "an extended attribute", errNoTarName)
			continue
		}
		if kind, ok := strings.CutPrefix(x.Name, "system.posix_acl_"); ok {
			text, err := aclText(x.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", x.Name, err)
			}
			h.PAXRecords["SCHILY.acl."+kind] = text
			continue
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	return h, nil
}

// errNoTarName: "=" ends a name in a PAX header.
var errNoTarName = errors.New("tar cannot hold its name")

func tarTime(t filesystem.Time) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Take implements Sink.
func (t *tarrer) Take(i *Item) error {
	h, err := t.header(i)
	if err != nil {
		return err
	}
	kind := i.Attr.Mode & filesystem.ModeType
	switch {
	case i.Again:
		h.Typeflag, h.Linkname = tar.TypeLink, t.first[i.Link]
		t.done.Links++
		err = t.write(h)
	case kind == filesystem.ModeRegular:
		err = t.regular(i, h)
	case kind == filesystem.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = t.view.Target(t.ctx, i.Node); err == nil {
			t.done.Links++
			err = t.write(h)
		}
	case kind == filesystem.ModeChar || kind == filesystem.ModeBlock || kind == filesystem.ModeFIFO:
		h.Typeflag = map[uint32]byte{filesystem.ModeChar: tar.TypeChar, filesystem.ModeBlock: tar.TypeBlock, filesystem.ModeFIFO: tar.TypeFifo}[kind]
		h.Devmajor, h.Devminor = int64(i.Attr.Major), int64(i.Attr.Minor)
		t.done.Others++
		err = t.write(h)
	default:
		err = fmt.Errorf("tar cannot hold sockets: %w", errors.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	if i.Link > 0 && !i.Again {
		t.first[i.Link] = i.Path
	}
	t.done.Path = i.Path
	if t.o.Progress != nil {
		t.o.Progress(t.done)
	}
	return nil
}

// minHole is how much a file must lack to be written as a sparse one, bytes.
const minHole = 64 << 10

// maxTarExtents bounds the map of a sparse file, which is held in memory.
const maxTarExtents = 1 << 20

// regular writes a file, as a sparse one if that is shorter.
func (t *tarrer) regular(i *Item, h *tar.Header) error {
	f, err := t.view.tree.Open(t.ctx, i.Node)
	if err != nil {
		return err
	}
	var data [][2]int64
	sum := int64(0)
	err = Extents(t.ctx, f, func(start, end int64) error {
		if n := len(data); n > 0 && (start-data[n-1][1] < 4096 || n == maxTarExtents) {
			sum += start - data[n-1][1]
			data[n-1][1] = end
		} else {
			data = append(data, [2]int64{start, end})
		}
		sum += end - start
		return nil
	})
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, f.Size()
	if f.Size()-sum >= minHole {
		return t.sparse(i, f, h, data, sum)
	}
	if t.o.Damaged != nil && f.Size() <= int64(len(t.buffer)) {
		p := t.buffer[:f.Size()]
		if err := readWhole(f, p, 0); err != nil {
			return t.unlessDamaged(err)
		}
		if err := t.write(h); err != nil {
			return err
		}
		_, t.fatal = t.w.Write(p)
		t.done.Files++
		t.done.Bytes += f.Size()
		return t.fatal
	}
	if err := t.write(h); err != nil {
		return err
	}
	return t.contents(i, func() error { return t.copyRange(t.w, f, 0, f.Size()) })
}

// unlessDamaged makes an error end the archive that is not of the file.
func (t *tarrer) unlessDamaged(err error) error {
	if !t.o.Damaged(err) {
		t.fatal = err
	}
	return err
}

// contents writes a file's contents by copy, and tells what of it had to be
// filled.
func (t *tarrer) contents(i *Item, copy func() error) error {
	t.filled, t.hole = 0, nil
	t.fatal = copy()
	t.done.Files++
	if t.fatal == nil && t.hole != nil {
		t.done.fail(i.Path, fmt.Errorf("%d bytes of it cannot be read and are zeros in the archive: %w", t.filled, t.hole))
	}
	return t.fatal
}

// readWhole fills p from a file's byte off on.
func readWhole(f filesystem.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n < len(p) {
		return fmt.Errorf("read at byte %d: %w", off+int64(n), errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

func (t *tarrer) copyRange(w io.Writer, f filesystem.File, off, end int64) error {
	for off < end {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		p := t.buffer[:min(int64(len(t.buffer)), end-off)]
		if err := readWhole(f, p, off); err != nil {
			if t.o.Damaged == nil || !t.o.Damaged(err) {
				return err
			}
			if err := t.fill(f, p, off); err != nil {
				return err
			}
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
		t.done.Bytes += int64(len(p))
	}
	return nil
}

// fill reads what can be read of a piece, block by block; the rest is zeros.
func (t *tarrer) fill(f filesystem.File, p []byte, off int64) error {
	const block = 4096
	for len(p) > 0 {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		n := min(int64(len(p)), block-off%block)
		if err := readWhole(f, p[:n], off); err != nil {
			if !t.o.Damaged(err) {
				return err
			}
			clear(p[:n])
			t.filled += n
			if t.hole == nil {
				t.hole = err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// sparse writes a file with holes in GNU tar's format 1.0 (GNU tar manual,
// "PAX Format, Version 1.0"), which archive/tar reads and does not write: a
// PAX header with GNU.sparse.*, then an entry whose data begin with the map:
// its number of ranges, and each one's offset and size, as decimal lines,
// filled up to a block.
func (t *tarrer) sparse(i *Item, f filesystem.File, h *tar.Header, data [][2]int64, sum int64) error {
	if n := len(data); n == 0 || data[n-1][1] < f.Size() {
		data = append(data, [2]int64{f.Size(), f.Size()}) // says how long the file is
	}
	var m strings.Builder
	fmt.Fprintf(&m, "%d\n", len(data))
	for _, d := range data {
		fmt.Fprintf(&m, "%d\n%d\n", d[0], d[1]-d[0])
	}
	m.WriteString(strings.Repeat("\x00", int(pad(int64(m.Len())))))
	records := h.PAXRecords
	records["GNU.sparse.major"], records["GNU.sparse.minor"] = "1", "0"
	records["GNU.sparse.name"], records["GNU.sparse.realsize"] = h.Name, strconv.FormatInt(f.Size(), 10)
	stored := int64(m.Len()) + sum
	records["path"] = path.Dir(h.Name) + "/GNUSparseFile.0/" + path.Base(h.Name)
	records["size"] = strconv.FormatInt(stored, 10)
	records["mtime"], records["atime"] = paxTime(h.ModTime), paxTime(h.AccessTime)
	records["uid"], records["gid"] = strconv.Itoa(h.Uid), strconv.Itoa(h.Gid)
	if err := t.w.Flush(); err != nil {
		t.fatal = err
		return err
	}
	body := paxRecords(records)
	write := func(b []byte) {
		if t.fatal == nil {
			_, t.fatal = t.out.Write(b)
		}
	}
	write(ustarBlock("GNUSparseFile.0/pax", 'x', 0o644, int64(len(body)), 0))
	write(append(body, make([]byte, pad(int64(len(body))))...))
	write(ustarBlock("GNUSparseFile.0/data", '0', h.Mode, stored, h.ModTime.Unix()))
	write([]byte(m.String()))
	return t.contents(i, func() error {
		for _, d := range data {
			if t.fatal != nil {
				return t.fatal
			}
			if err := t.copyRange(t.out, f, d[0], d[1]); err != nil {
				return err
			}
		}
		write(make([]byte, pad(sum)))
		return t.fatal
	})
}

// pad is what n bytes lack to whole blocks of 512.
func pad(n int64) int64 { return -n & 511 }

// paxTime writes a time as pax does, with a sign and a fraction.
func paxTime(t time.Time) string {
	sec, nsec := t.Unix(), int64(t.Nanosecond())
	sign := ""
	if sec < 0 {
		sign, sec, nsec = "-", -sec, -nsec
		if nsec < 0 {
			sec, nsec = sec-1, nsec+1e9
		}
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}

// paxRecords writes the records of an extended header: "LENGTH KEY=VALUE\n",
// where LENGTH counts itself.
func paxRecords(records map[string]string) []byte {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(records)) {
		v := records[k]
		size := len(k) + len(v) + len(" =\n")
		n := size + len(strconv.Itoa(size))
		if size+len(strconv.Itoa(n)) != n {
			n = size + len(strconv.Itoa(n))
		}
		b = fmt.Appendf(b, "%d %s=%s\n", n, k, v)
	}
	return b
}

// ustarBlock is a header block (POSIX.1-1988) with what is not in PAX records.
func ustarBlock(name string, kind byte, mode, size, mtime int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	octal := func(off, digits int, n int64) {
		if limit := int64(1) << (3 * digits); n < 0 || n >= limit {
			n = 0 // the PAX record has it
		}
		copy(b[off:], fmt.Sprintf("%0*o", digits, n))
	}
	octal(100, 7, mode)
	octal(108, 7, 0)
	octal(116, 7, 0)
	octal(124, 11, size)
	octal(136, 11, mtime)
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	copy(b[148:], "        ")
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}
