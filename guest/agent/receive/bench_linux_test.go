package receive

import (
	"fmt"
	"io"
	"os"
	"testing"

	"cairn/guest"
	"cairn/guest/archive"
	"cairn/guest/filesystem"
)

// BenchmarkPutLarge puts one large file; BenchmarkPutSmall many small ones. Both
// include syncing, reading back and comparing.
func BenchmarkPutLarge(b *testing.B) { benchmarkPut(b, 1, 512<<20) }

func BenchmarkPutSmall(b *testing.B) { benchmarkPut(b, 10_000, 6<<10) }

func benchmarkPut(b *testing.B, files int, size int64) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	dir := b.TempDir()
	data := make([]byte, archive.MaxData)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	b.SetBytes(int64(files) * size)
	r := receiver(b)
	for b.Loop() {
		target := guest.PutTarget{Path: []byte(dir + "/tree"), Where: guest.PutAt, Dir: true, Entries: int64(files) + 1, Bytes: int64(files) * size}
		res, err := putStream(b, r, guest.Put{Targets: []guest.PutTarget{target}}, func(w io.Writer) error {
			s := newSender(w)
			s.put(archive.Record{Kind: archive.Enter, Name: "tree"})
			for i := range files {
				s.put(archive.Record{Kind: archive.File, Name: fmt.Sprint(i), Attr: filesystem.Attr{Mode: 0o100644, Size: size}})
				for at := int64(0); at < size; at += archive.MaxData {
					s.put(archive.Record{Kind: archive.Data, Offset: at, Data: data[:min(size-at, archive.MaxData)]})
				}
				s.put(archive.Record{Kind: archive.End})
			}
			s.put(archive.Record{Kind: archive.Leave, Attr: filesystem.Attr{Mode: 0o40755}})
			return s.finish()
		})
		if err != nil || !res.Done {
			b.Fatalf("%+v, %v", res, err)
		}
	}
}
