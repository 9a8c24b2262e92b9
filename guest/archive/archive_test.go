package archive

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"cairn/guest/filesystem"
)

// sample is a stream with every kind of record.
func sample() []Record {
	file := filesystem.Attr{Mode: 0o104755, UID: 1000, GID: 4294967295, Size: 3 << 20,
		Atime: filesystem.Time{Sec: -1, Nsec: 999999999}, Mtime: filesystem.Time{Sec: 1 << 40, Nsec: 1}}
	return []Record{
		{Kind: Enter, Name: "top"},
		{Kind: File, Name: "latin1-\xe9\xff\n", Link: 1, Attr: file, Xattrs: []filesystem.Xattr{{Name: "user.a", Value: []byte{0, 1}}, {Name: "user.empty", Value: []byte{}}}},
		{Kind: Data, Offset: 5, Data: []byte("data")},
		{Kind: Data, Offset: 2 << 20, Data: bytes.Repeat([]byte("x"), MaxData)},
		{Kind: End},
		{Kind: Enter, Name: strings.Repeat("n", 255)},
		{Kind: Link, Name: "hard", Link: 1},
		{Kind: Symlink, Name: "link", Attr: filesystem.Attr{Mode: 0o120777}, Target: strings.Repeat("../", 1365)},
		{Kind: Special, Name: "null", Link: 7, Attr: filesystem.Attr{Mode: 0o020666, Major: 1, Minor: 3}},
		{Kind: Leave, Attr: filesystem.Attr{Mode: 0o40755}, Xattrs: []filesystem.Xattr{{Name: "system.posix_acl_default", Value: bytes.Repeat([]byte{7}, MaxValue)}}},
		{Kind: File, Name: "broken", Attr: filesystem.Attr{Mode: 0o100000, Size: 1}},
		{Kind: Broken},
		{Kind: Lost},
		{Kind: Leave, Attr: filesystem.Attr{Mode: 0o40700}},
		{Kind: Finish},
	}
}

func encode(t testing.TB, records []Record) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for i := range records {
		if err := w.Write(&records[i]); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReaderGivesWhatWasWritten(t *testing.T) {
	want := sample()
	r := NewReader(iotest.HalfReader(bytes.NewReader(encode(t, want))))
	for i := range want {
		var got Record
		if err := r.Next(&got); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		if !reflect.DeepEqual(got, want[i]) {
			t.Errorf("record %d: got %.200v, want %.200v", i, got, want[i])
		}
	}
	if err := r.Next(new(Record)); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %v", err)
	}
	if want[4].Digest == (Digest{}) {
		t.Error("the writer gave no digest")
	}
}

// A stream that ends anywhere before its end is never taken for a whole one.
func TestTruncatedStreamIsNoStream(t *testing.T) {
	records := sample()
	records[3].Data, records[9].Xattrs = []byte("short"), nil // or the loop takes long
	whole := encode(t, records)
	for n := range whole {
		r := NewReader(bytes.NewReader(whole[:n]))
		var err error
		for err == nil {
			err = r.Next(new(Record))
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("after %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func TestWriterErrorSticks(t *testing.T) {
	broken := errors.New("broken")
	w := NewWriter(failing{broken})
	if err := w.Write(&Record{Kind: Lost}); err != nil {
		t.Fatalf("within the buffer: %v", err)
	}
	if err := w.Flush(); !errors.Is(err, broken) {
		t.Errorf("Flush: %v", err)
	}
	if err := w.Write(&Record{Kind: Lost}); !errors.Is(err, broken) {
		t.Errorf("Write: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// wrongRecords are what no Writer writes, each after what makes it wrong.
func wrongRecords() map[string][]Record {
	file := Record{Kind: File, Name: "f", Attr: filesystem.Attr{Mode: 0o100644, Size: 100}}
	with := func(change func(*Record)) Record {
		r := file
		change(&r)
		return r
	}
	dir := filesystem.Attr{Mode: 0o40755}
	return map[string][]Record{
		"slash":               {with(func(r *Record) { r.Name = "../f" })},
		"dot dot":             {{Kind: Enter, Name: ".."}},
		"dot":                 {{Kind: Enter, Name: "."}},
		"no name":             {with(func(r *Record) { r.Name = "" })},
		"NUL":                 {with(func(r *Record) { r.Name = "f\x00g" })},
		"a directory's mode":  {with(func(r *Record) { r.Attr = dir })},
		"negative size":       {with(func(r *Record) { r.Attr.Size = -1 })},
		"nanoseconds":         {with(func(r *Record) { r.Attr.Mtime.Nsec = 1e9 })},
		"target of a file":    {with(func(r *Record) { r.Target = "x" })},
		"attribute's name":    {with(func(r *Record) { r.Xattrs = []filesystem.Xattr{{Name: ""}} })},
		"attribute's size":    {with(func(r *Record) { r.Xattrs = []filesystem.Xattr{{Name: "a", Value: make([]byte, MaxValue+1)}} })},
		"many attributes":     {with(func(r *Record) { r.Xattrs = make([]filesystem.Xattr, maxXattrs+1) })},
		"link without target": {{Kind: Symlink, Name: "l", Attr: filesystem.Attr{Mode: 0o120777}}},
		"NUL in a target":     {{Kind: Symlink, Name: "l", Target: "a\x00", Attr: filesystem.Attr{Mode: 0o120777}}},
		"long target":         {{Kind: Symlink, Name: "l", Target: strings.Repeat("a", MaxTarget+1), Attr: filesystem.Attr{Mode: 0o120777}}},
		"left too often":      {{Kind: Leave, Attr: dir}},
		"not left":            {{Kind: Enter, Name: "d"}, {Kind: Finish}},
		"behind the finish":   {{Kind: Finish}, {Kind: Lost}},
		"data without a file": {{Kind: Data, Data: []byte("x")}},
		"end without a file":  {{Kind: End}},
		"data behind the end": {file, {Kind: Data, Offset: 97, Data: []byte("abcd")}},
		"data far behind":     {file, {Kind: Data, Offset: 1<<63 - 1, Data: []byte("abcd")}},
		"data before zero":    {file, {Kind: Data, Offset: -1, Data: []byte("abcd")}},
		"data backwards":      {file, {Kind: Data, Offset: 10, Data: []byte("abcd")}, {Kind: Data, Offset: 13, Data: []byte("x")}},
		"no data":             {file, {Kind: Data, Offset: 10}},
		"entry in a file":     {file, {Kind: Enter, Name: "d"}},
		"finish in a file":    {file, {Kind: Finish}},
		"link to nothing":     {{Kind: Link, Name: "l", Link: 1}},
		"link numbers fall":   {with(func(r *Record) { r.Link = 5 }), {Kind: End}, with(func(r *Record) { r.Link = 5 })},
		"too deep": append(bytesOf(MaxDepth, Record{Kind: Enter, Name: "d"}),
			Record{Kind: Enter, Name: "d"}),
		"unknown kind": {{Kind: 99}},
	}
}

func bytesOf(n int, r Record) []Record {
	list := make([]Record, n)
	for i := range list {
		list[i] = r
	}
	return list
}

// The last record of each list is refused by the writer, which goes on as if
// it had not been given; and by the reader, when a writer without a check had
// written it.
func TestWrongRecordsAreRefused(t *testing.T) {
	for name, list := range wrongRecords() {
		last := len(list) - 1
		w := NewWriter(io.Discard)
		for i := range list[:last] {
			if err := w.Write(&list[i]); err != nil {
				t.Fatalf("%s: record %d: %v", name, i, err)
			}
		}
		if err := w.Write(&list[last]); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: the writer takes it: %v", name, err)
		}
		r := NewReader(bytes.NewReader(unchecked(list)))
		var err error
		n := 0
		for ; err == nil; n++ {
			err = r.Next(new(Record))
		}
		want := ErrInvalid
		if name == "behind the finish" {
			want = io.EOF // it is not even looked at
		}
		if !errors.Is(err, want) || n != len(list) {
			t.Errorf("%s: the reader: %v after %d of %d records", name, err, n, len(list))
		}
	}
}

// unchecked writes records that may be wrong.
func unchecked(list []Record) []byte {
	b := []byte(magic)
	for _, r := range list {
		var p []byte
		switch r.Kind {
		case Data:
			p = append(make([]byte, 8), r.Data...)
			for i := range 8 {
				p[i] = byte(r.Offset >> (8 * i))
			}
		case End:
			p = r.Digest[:]
		case Lost, Broken, Finish, 99:
		default:
			p = appendEntry(nil, &r)
		}
		b = append(b, byte(r.Kind), byte(len(p)), byte(len(p)>>8), byte(len(p)>>16))
		b = append(b, p...)
	}
	return b
}

// What a reader gives, a writer takes, and spells in the same way.
func FuzzReader(f *testing.F) {
	records := sample()
	records[3].Data, records[9].Xattrs = []byte("short"), nil
	f.Add(encode(f, records))
	for _, list := range wrongRecords() {
		if b := unchecked(list); len(b) < 10_000 {
			f.Add(b)
		}
	}
	f.Add([]byte(magic + "\x08\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		var again bytes.Buffer
		w := NewWriter(&again)
		digests := false
		for {
			var rec Record
			if err := r.Next(&rec); err != nil {
				break
			}
			told := rec.Digest
			if err := w.Write(&rec); err != nil {
				t.Fatalf("a record that was read cannot be written: %v", err)
			}
			digests = digests || told != rec.Digest
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if !digests && again.Len() > len(magic) && !bytes.HasPrefix(b, again.Bytes()) {
			t.Errorf("written again it is %x, was %x", again.Bytes(), b)
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789abcdef"), MaxData/16)
	b.SetBytes(MaxData)
	w := NewWriter(io.Discard)
	for b.Loop() {
		for _, r := range []Record{{Kind: File, Name: "f", Attr: filesystem.Attr{Mode: 0o100644, Size: MaxData}}, {Kind: Data, Data: data}, {Kind: End}} {
			if err := w.Write(&r); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkReader(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789abcdef"), MaxData/16)
	piece := encode(b, []Record{{Kind: File, Name: "f", Attr: filesystem.Attr{Mode: 0o100644, Size: MaxData}}, {Kind: Data, Data: data}, {Kind: End}})
	head, body := piece[:len(magic)], piece[len(magic):]
	r := NewReader(io.MultiReader(bytes.NewReader(head), &endless{body, 0}))
	b.SetBytes(MaxData)
	var rec Record
	for b.Loop() {
		for range 3 {
			if err := r.Next(&rec); err != nil {
				b.Fatal(err)
			}
		}
	}
}

type endless struct {
	piece []byte
	at    int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.piece[e.at:])
	e.at = (e.at + n) % len(e.piece)
	return n, nil
}
