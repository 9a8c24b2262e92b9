package object

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a document.
const (
	MaxDocument = 16 << 20 // bytes
	MaxObjects  = 10_000
	MaxMounts   = 4096
	MaxName     = 255  // bytes of each part of an object's name
	MaxText     = 4096 // bytes of any other single text
	maxList     = 4096 // paths, steps, warnings of one thing
	maxDepth    = 32
	// A document of nothing but "{}," would take some hundred times its size
	// in memory.
	maxBraces = 1 << 17 // objects of JSON: a Path, a Step, a Device, a map of Details
	maxValues = 1 << 20 // values of JSON
)

// ErrInvalid says that a document is not one: it comes from a guest, and that
// may lie.
var ErrInvalid = errors.New("invalid metadata document")

// Digest is the SHA-256 of a document's bytes, in hexadecimal digits.
func Digest(encoded []byte) string {
	sum := sha256.Sum256(encoded)
	return hex.EncodeToString(sum[:])
}

// Encode sorts a document's objects, checks it, and gives its bytes: what
// Decode will take.
func Encode(d *Document) ([]byte, error) {
	slices.SortFunc(d.Objects, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	if err := d.check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := checkShape(b); err != nil {
		return nil, err
	}
	return b, nil
}

// Decode reads and checks a document. Fields that this program does not know
// are left out. Bytes that are not spelled as encoding/json spells raw JSON are
// refused: a document is kept within another one, and its digest must hold
// there.
func Decode(b []byte) (*Document, error) {
	if err := checkShape(b); err != nil {
		return nil, err
	}
	d := new(Document)
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	// As json.RawMessage will be written by whoever keeps it.
	again, err := json.Marshal(json.RawMessage(b))
	if err != nil || !bytes.Equal(again, b) {
		return nil, fmt.Errorf("%w: it is not spelled as a document is", ErrInvalid)
	}
	return d, nil
}

// checkShape refuses what would take too much to decode.
func checkShape(b []byte) error {
	if len(b) > MaxDocument {
		return fmt.Errorf("%w: %d bytes are more than %d", ErrInvalid, len(b), MaxDocument)
	}
	depth, values, braces, quoted, escaped := 0, 1, 0, false, false
	for _, c := range b {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{':
			depth, values, braces = depth+1, values+1, braces+1
		case c == '[':
			depth, values = depth+1, values+1
		case c == ',':
			values++
		case c == '}' || c == ']':
			depth--
		}
		if depth > maxDepth || values > maxValues || braces > maxBraces {
			return fmt.Errorf("%w: more than %d levels, %d values or %d maps", ErrInvalid, maxDepth, maxValues, maxBraces)
		}
	}
	if !utf8.Valid(b) {
		return fmt.Errorf("%w: it is not UTF-8", ErrInvalid)
	}
	return nil
}

func (d *Document) check() error {
	switch {
	case d.Version < 1:
		return fmt.Errorf("%w: version %d", ErrInvalid, d.Version)
	case d.Version > Version:
		return fmt.Errorf("%w: version %d is newer than this program knows (%d)", ErrInvalid, d.Version, Version)
	case len(d.Objects) > MaxObjects || len(d.Mounts) > MaxMounts || len(d.Warnings) > maxList:
		return fmt.Errorf("%w: %d objects, %d mounts, %d warnings are too many", ErrInvalid, len(d.Objects), len(d.Mounts), len(d.Warnings))
	}
	texts := append([]string{d.Source, d.Point, d.Agent, d.Hostname, d.OS.ID, d.OS.Name, d.OS.Version, d.OS.KernelRelease, d.OS.Machine}, d.Warnings...)
	if err := checkTexts(texts...); err != nil {
		return err
	}
	for _, m := range d.Mounts {
		if err := m.check(); err != nil {
			return err
		}
	}
	for i := range d.Objects {
		if err := d.Objects[i].check(); err != nil {
			return err
		}
		if i > 0 && d.Objects[i-1].Name >= d.Objects[i].Name {
			return fmt.Errorf("%w: object %q is there twice, or out of order", ErrInvalid, d.Objects[i].Name)
		}
	}
	return nil
}

func (m *Mount) check() error {
	if err := checkTexts(m.Mountpoint, m.Source, m.Type, m.Options, m.UUID, m.Label, m.Bind, m.Reason); err != nil {
		return err
	}
	if m.UsedBytes < 0 || m.TotalBytes < 0 {
		return fmt.Errorf("%w: mount %q has %d of %d bytes", ErrInvalid, m.Mountpoint, m.UsedBytes, m.TotalBytes)
	}
	n := 0
	return m.Device.check(&n)
}

// check checks a device and all below it; n counts them.
func (d *Device) check(n *int) error {
	if d == nil {
		return nil
	}
	if *n++; *n > maxList {
		return fmt.Errorf("%w: a mount lies on more than %d devices", ErrInvalid, maxList)
	}
	if err := checkTexts(d.Name, d.Kind, d.Title, d.Serial, d.PCI); err != nil {
		return err
	}
	if d.Size < 0 || d.Partition < 0 {
		return fmt.Errorf("%w: device %q: size %d, partition %d", ErrInvalid, d.Name, d.Size, d.Partition)
	}
	for i := range d.Below {
		if err := d.Below[i].check(n); err != nil {
			return err
		}
	}
	return nil
}

func (o *Object) check() error {
	if err := CheckName(o.Name); err != nil {
		return err
	}
	if err := checkTexts(o.Kind, o.Title, o.Version, o.State, o.Service, o.Consistency.Reason); err != nil {
		return fmt.Errorf("object %q: %w", o.Name, err)
	}
	switch o.Consistency.Level {
	case Application, Filesystem, Crash:
	default:
		return fmt.Errorf("%w: object %q has consistency %.40q", ErrInvalid, o.Name, o.Consistency.Level)
	}
	if len(o.Paths) > maxList || len(o.Steps) > maxList {
		return fmt.Errorf("%w: object %q has %d paths and %d steps", ErrInvalid, o.Name, len(o.Paths), len(o.Steps))
	}
	roles := map[string]bool{}
	for _, p := range o.Paths {
		if err := checkPart(p.Role); err != nil {
			return fmt.Errorf("object %q: role: %w", o.Name, err)
		}
		if p.Size < 0 || roles[p.Role] {
			return fmt.Errorf("%w: object %q: role %q is there twice, or has %d bytes", ErrInvalid, o.Name, p.Role, p.Size)
		}
		roles[p.Role] = true
		if err := CheckPath(p.Path); err != nil {
			return fmt.Errorf("object %q: %w", o.Name, err)
		}
	}
	for _, s := range o.Steps {
		if err := checkTexts(s.Phase, s.Object, s.What, s.Error, s.Output); err != nil {
			return fmt.Errorf("object %q: %w", o.Name, err)
		}
	}
	return nil
}

// CheckName refuses what is no object's name: one or two parts, each of which
// can be a directory's name on any system.
func CheckName(name string) error {
	group, rest, two := strings.Cut(name, "/")
	if err := checkPart(group); err != nil || !two {
		return err
	}
	return checkPart(rest)
}

func checkPart(s string) error {
	bad := func(r rune) bool {
		return r < ' ' || r == 0x7f || r == utf8.RuneError || strings.ContainsRune(`/\:*?"<>|`, r)
	}
	if s == "" || s == "." || s == ".." || len(s) > MaxName || strings.ContainsFunc(s, bad) {
		return fmt.Errorf("%w: %.80q is not a name", ErrInvalid, s)
	}
	return nil
}

// PartOf makes a part of an object's name out of any text: what cannot be in
// one becomes "_".
func PartOf(s string) string {
	s = strings.Map(func(r rune) rune {
		if checkPart(string(r)) != nil && r != '.' {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(s, "_"))
	if len(s) > MaxName {
		s = strings.ToValidUTF8(s[:MaxName], "")
	}
	if checkPart(s) != nil {
		return "_"
	}
	return s
}

// CheckPath refuses what is not an absolute, clean path in the guest.
func CheckPath(p string) error {
	if len(p) > MaxText || !strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.ContainsRune(p, 0) || !utf8.ValidString(p) {
		return fmt.Errorf("%w: %.80q is not an absolute path", ErrInvalid, p)
	}
	return nil
}

func checkTexts(texts ...string) error {
	for _, s := range texts {
		if len(s) > MaxText || !utf8.ValidString(s) {
			return fmt.Errorf("%w: a text of %d bytes is too long, or not UTF-8: %.40q…", ErrInvalid, len(s), s)
		}
	}
	return nil
}

// Text makes a text of unknown origin what a document may hold and a terminal
// may show: valid, not too long, and without control characters but line ends
// and tabs.
func Text(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
	if len(s) > MaxText {
		s = strings.ToValidUTF8(s[:MaxText-4], "") + "…"
	}
	return s
}
