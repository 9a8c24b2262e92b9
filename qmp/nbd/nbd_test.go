package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

func TestReadEqualsImage(t *testing.T) {
	path, data := image(t, t.TempDir(), 9<<20+512)
	servers := map[string]string{
		"qemu-nbd":       qemuNBD(t, path, "-f", "raw"),
		"nbdkit":         nbdkit(t, "file", path),
		"simple":         nbdkit(t, "--no-sr", "file", path),
		"blocks of 4096": nbdkit(t, "--filter=blocksize-policy", "file", path, "blocksize-minimum=512", "blocksize-maximum=64K", "blocksize-error-policy=error"),
	}
	for name, socket := range servers {
		t.Run(name, func(t *testing.T) {
			c := dial(t, Dialer{RequestSize: 100 << 10}, socket, "")
			if c.Size() != int64(len(data)) {
				t.Fatalf("size %d, want %d", c.Size(), len(data))
			}
			got := make([]byte, len(data))
			if n, err := c.ReadAt(got, 0); n != len(got) || err != nil {
				t.Fatal(n, err)
			}
			if !bytes.Equal(got, data) {
				t.Fatal("bytes differ from the image")
			}
			// Reads at odd offsets and over the end, as io.ReaderAt promises.
			if err := iotest.TestReader(io.NewSectionReader(c, 0, 10_001), data[:10_001]); err != nil {
				t.Error(err)
			}
			for _, off := range []int64{0, 1, 511, 513, 1<<20 - 3, int64(len(data)) - 700, int64(len(data))} {
				p := make([]byte, 1500)
				n, err := c.ReadAt(p, off)
				want := data[off:min(off+1500, int64(len(data)))]
				if !bytes.Equal(p[:n], want) || (err == io.EOF) != (len(want) < len(p)) {
					t.Errorf("read at %d: %d bytes, %v; want %d bytes", off, n, err, len(want))
				}
			}
		})
	}
}

func TestManyReadersOnOneConnection(t *testing.T) {
	path, data := image(t, t.TempDir(), 8<<20)
	c := dial(t, Dialer{RequestSize: 32 << 10, MaxInFlight: 8}, nbdkit(t, "file", path), "")
	var group sync.WaitGroup
	for g := range 16 {
		group.Go(func() {
			p := make([]byte, 300<<10)
			for i := range 20 {
				off := (g*7919 + i*104729) * 13 % (len(data) - len(p))
				if n, err := c.ReadAt(p, int64(off)); n != len(p) || err != nil || !bytes.Equal(p, data[off:off+len(p)]) {
					t.Errorf("read at %d: %d, %v, or bytes differ", off, n, err)
					return
				}
			}
		})
	}
	group.Wait()
}

func TestExtentsOfAllocation(t *testing.T) {
	path, data := image(t, t.TempDir(), 9<<20)
	c := dial(t, Dialer{}, qemuNBD(t, path, "-f", "raw"), "", BaseAllocation)
	var got []Extent
	collect := func(e Extent) error { got = append(got, e); return nil }
	if err := c.Extents(testContext(t), BaseAllocation, 0, c.Size(), collect); err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for i, e := range got {
		if e.Offset != at || i > 0 && got[i-1].Flags == e.Flags {
			t.Errorf("extent %+v after %+v: not in order or not merged", e, got[:i])
		}
		at = e.End()
		if e.Flags&FlagZero != 0 && len(bytes.Trim(data[e.Offset:e.End()], "\x00")) > 0 {
			t.Errorf("%+v is said to be zero and is not", e)
		}
	}
	if at != c.Size() || len(got) < 8 {
		t.Errorf("extents end at %d of %d, %d of them", at, c.Size(), len(got))
	}
	// A range that begins and ends inside of extents is clipped.
	got = nil
	if err := c.Extents(testContext(t), BaseAllocation, 1<<19+1, 1<<20, collect); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Offset != 1<<19+1 || got[1].End() != 3<<19+1 {
		t.Errorf("clipped: %+v", got)
	}
	// The caller's error ends it.
	stop := errors.New("enough")
	if err := c.Extents(testContext(t), BaseAllocation, 0, c.Size(), func(Extent) error { return stop }); err != stop {
		t.Errorf("got %v, want the caller's error", err)
	}
}

// TestExtentsOfDirtyBitmap marks clusters by qemu-io and reads the marks back.
func TestExtentsOfDirtyBitmap(t *testing.T) {
	need(t, "qemu-img", "qemu-io")
	path := t.TempDir() + "/d.qcow2"
	for _, args := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", path, "6G"}, // > 4 GiB: more than one question
		{"qemu-img", "bitmap", "--add", path, "b0"},
		{"qemu-io", "-c", "write 1M 64k", "-c", "write 5G 128k", path},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	socket := qemuNBD(t, path, "-f", "qcow2", "-B", "b0")
	c := dial(t, Dialer{}, socket, "", DirtyBitmap("b0"))
	var got []Extent
	err := c.Extents(testContext(t), DirtyBitmap("b0"), 0, c.Size(), func(e Extent) error {
		if e.Flags&FlagDirty != 0 {
			got = append(got, e)
		}
		return nil
	})
	want := []Extent{{1 << 20, 64 << 10, 1}, {5 << 30, 128 << 10, 1}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	_, err = Dial(testContext(t), "unix", socket, "", BaseAllocation, DirtyBitmap("other"))
	if !errors.Is(err, ErrNoContext) || !strings.Contains(err.Error(), "other") {
		t.Errorf("missing context: got %v", err)
	}
	if _, err := Dial(testContext(t), "unix", socket, "no-such-export"); !errors.Is(err, ErrNoExport) {
		t.Errorf("missing export: got %v", err)
	}
}

// TestServerErrorKeepsConnection: a refused read gives its errno, the next works.
func TestServerErrorKeepsConnection(t *testing.T) {
	file := t.TempDir() + "/fail"
	path, _ := image(t, t.TempDir(), 1<<20)
	c := dial(t, Dialer{}, nbdkit(t, "--filter=error", "file", path, "error-pread=EIO", "error-pread-rate=100%", "error-file="+file), "")
	p := make([]byte, 4096)
	if _, err := c.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var refused *Error
	if _, err := c.ReadAt(p, 4096); !errors.Is(err, syscall.EIO) || !errors.As(err, &refused) || refused.Offset != 4096 {
		t.Errorf("got %v, want EIO at 4096", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(p, 0); err != nil {
		t.Errorf("after an error: %v", err)
	}
}

func TestContextEndsRequest(t *testing.T) {
	path, data := image(t, t.TempDir(), 1<<20)
	c := dial(t, Dialer{}, nbdkit(t, "--filter=delay", "file", path, "delay-read=400ms"), "")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	p := make([]byte, 4096)
	begin := time.Now()
	if _, err := c.ReadAtContext(ctx, p, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if d := time.Since(begin); d > 300*time.Millisecond {
		t.Errorf("took %v", d)
	}
	// The late reply must neither reach the old buffer nor break the connection.
	old := bytes.Clone(p)
	q := make([]byte, 4096)
	if _, err := c.ReadAt(q, 8192); err != nil || !bytes.Equal(q, data[8192:8192+4096]) {
		t.Errorf("next read: %v, or wrong bytes", err)
	}
	if !bytes.Equal(p, old) {
		t.Error("a late reply was written into a buffer whose call had returned")
	}
}

// TestContextEndsInTheMiddleOfAChunk: the server sends half of a payload and stops.
func TestContextEndsInTheMiddleOfAChunk(t *testing.T) {
	half := make(chan struct{})
	c := fake(t, Dialer{}, 1<<20, nil, func(s net.Conn) {
		req := readRequest(t, s)
		s.Write(chunk(1, chunkOffsetData, req.cookie, 8+8192, binary.BigEndian.AppendUint64(nil, req.offset), make([]byte, 4096)))
		close(half)
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-half
		time.Sleep(20 * time.Millisecond)
		cancel()
	}()
	p := make([]byte, 8192)
	_, err := c.ReadAtContext(ctx, p, 0)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	clear(p) // the race detector sees a reader that still writes
	if _, err := c.ReadAt(p, 0); err == nil {
		t.Error("the connection is out of step and must be broken")
	}
}

func TestSilentServer(t *testing.T) {
	c := fake(t, Dialer{ProgressTimeout: 80 * time.Millisecond}, 1<<20, nil, func(s net.Conn) {
		io.Copy(io.Discard, s)
	})
	time.Sleep(120 * time.Millisecond) // silence without a request is no failure
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrSilent) {
				t.Errorf("got %v, want ErrSilent", err)
			}
		})
	}
	group.Wait()
	if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrSilent) {
		t.Errorf("later: got %v, want ErrSilent", err)
	}
}

// TestBrokenConnectionStaysOpen: see the package's comment; a close by
// ourselves kills a guest on QEMU 7.2.
func TestBrokenConnectionStaysOpen(t *testing.T) {
	sawEnd := make(chan struct{})
	c := fake(t, Dialer{}, 1<<20, nil, func(s net.Conn) {
		readRequest(t, s)
		s.Write(bytes.Repeat([]byte{0xee}, 64))
		io.Copy(io.Discard, s)
		close(sawEnd)
	})
	if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrProtocol) {
		t.Fatalf("got %v, want ErrProtocol", err)
	}
	select {
	case <-sawEnd:
		t.Fatal("the socket was closed before Abandon")
	case <-time.After(50 * time.Millisecond):
	}
	c.Abandon()
	<-sawEnd
}

func TestCloseEndsCalls(t *testing.T) {
	got := make(chan []byte, 1)
	started := make(chan struct{})
	c := fake(t, Dialer{}, 1<<20, nil, func(s net.Conn) {
		readRequest(t, s)
		close(started)
		rest, _ := io.ReadAll(s)
		got <- rest
	})
	result := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		result <- err
	}()
	<-started
	c.Close()
	c.Close() // a second one is nothing
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if b := <-got; len(b) != 28 || binary.BigEndian.Uint16(b[6:]) != cmdDisconnect {
		t.Errorf("Close sent %x, want NBD_CMD_DISC", b)
	}
}

func TestHangingHandshake(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, "unix", l.Addr().String(), "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestHostileReplies: each is a reply to a read of 1024 bytes at 4096 or to a
// block status there; all must break the connection with ErrProtocol.
func TestHostileReplies(t *testing.T) {
	u64, u32 := binary.BigEndian.AppendUint64, binary.BigEndian.AppendUint32
	data := make([]byte, 1024)
	status := func(pairs ...uint32) []byte {
		b := u32(nil, 7)
		for _, v := range pairs {
			b = u32(b, v)
		}
		return b
	}
	tests := []struct {
		name   string
		status bool
		reply  func(cookie uint64) []byte
	}{
		{"unknown cookie", false, func(k uint64) []byte { return chunk(1, chunkNone, k+1, 0) }},
		{"nothing", false, func(k uint64) []byte { return chunk(1, chunkNone, k, 0) }},
		{"a part is missing", false, func(k uint64) []byte { return chunk(1, chunkOffsetData, k, 8+1023, u64(nil, 4096), data[:1023]) }},
		{"before the request", false, func(k uint64) []byte { return chunk(1, chunkOffsetData, k, 8+1024, u64(nil, 4095), data) }},
		{"behind the request", false, func(k uint64) []byte { return chunk(1, chunkOffsetData, k, 8+1024, u64(nil, 4097), data) }},
		{"offset near 2^64", false, func(k uint64) []byte { return chunk(1, chunkOffsetData, k, 8+1024, u64(nil, 1<<64-2), data) }},
		{"too long", false, func(k uint64) []byte { return chunk(1, chunkOffsetData, k, 8+1025, u64(nil, 4096), data) }},
		{"no data in a data chunk", false, func(k uint64) []byte { return chunk(0, chunkOffsetData, k, 8, u64(nil, 4096)) }},
		{"huge chunk", false, func(k uint64) []byte { return chunk(1, chunkOffsetData, k, 1<<32-1, u64(nil, 4096)) }},
		{"hole over the end", false, func(k uint64) []byte { return chunk(1, chunkOffsetHole, k, 12, u32(u64(nil, 4096), 1<<31)) }},
		{"overlap", false, func(k uint64) []byte {
			return append(chunk(0, chunkOffsetHole, k, 12, u32(u64(nil, 4096), 1000)), chunk(1, chunkOffsetData, k, 8+1024, u64(nil, 4096), data)...)
		}},
		{"simple reply", false, func(k uint64) []byte { return append(u64(u32(u32(nil, magicSimple), 0), k), data...) }},
		{"error number 0", false, func(k uint64) []byte { return chunk(1, 1<<15+1, k, 6, make([]byte, 6)) }},
		{"error message too long", false, func(k uint64) []byte { return chunk(1, 1<<15+1, k, 6, u32(nil, 5), []byte{0, 1}) }},
		{"status for a read", false, func(k uint64) []byte { return chunk(1, chunkBlockStatus, k, 12, status(512, 0)) }},
		{"data for a status", true, func(k uint64) []byte { return chunk(1, chunkOffsetData, k, 8+1024, u64(nil, 4096), data) }},
		{"no extents", true, func(k uint64) []byte { return chunk(1, chunkBlockStatus, k, 4, status()) }},
		{"half an extent", true, func(k uint64) []byte { return chunk(1, chunkBlockStatus, k, 16, status(512, 0, 1)) }},
		{"extent of no length", true, func(k uint64) []byte { return chunk(1, chunkBlockStatus, k, 12, status(0, 0)) }},
		{"twice one context", true, func(k uint64) []byte {
			b := chunk(0, chunkBlockStatus, k, 12, status(512, 0))
			return append(b, chunk(1, chunkBlockStatus, k, 12, status(512, 0))...)
		}},
		{"only another context", true, func(k uint64) []byte { return chunk(1, chunkBlockStatus, k, 12, u32(u32(u32(nil, 8), 512), 0)) }},
		{"huge status", true, func(k uint64) []byte { return chunk(1, chunkBlockStatus, k, 1<<31+4, status()) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := fake(t, Dialer{ProgressTimeout: 5 * time.Second}, 1<<20, map[string]uint32{"x": 7}, func(s net.Conn) {
				s.Write(test.reply(readRequest(t, s).cookie))
				io.Copy(io.Discard, s)
			})
			var err error
			if test.status {
				err = c.Extents(testContext(t), "x", 4096, 1024, func(Extent) error { return nil })
			} else {
				_, err = c.ReadAt(make([]byte, 1024), 4096)
			}
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("got %v, want ErrProtocol", err)
			}
		})
	}
}

func TestChunksInAnyOrder(t *testing.T) {
	c := fake(t, Dialer{}, 1<<20, nil, func(s net.Conn) {
		k := readRequest(t, s).cookie
		u64, u32 := binary.BigEndian.AppendUint64, binary.BigEndian.AppendUint32
		s.Write(chunk(0, chunkOffsetData, k, 8+3, u64(nil, 5), []byte("fgh")))
		s.Write(chunk(0, chunkOffsetHole, k, 12, u32(u64(nil, 2), 3)))
		s.Write(chunk(0, chunkOffsetData, k, 8+2, u64(nil, 8), []byte("ij")))
		s.Write(chunk(0, chunkOffsetData, k, 8+2, u64(nil, 0), []byte("ab")))
		s.Write(chunk(1, chunkNone, k, 0))
	})
	p := []byte("XXXXXXXXXX")
	if n, err := c.ReadAt(p, 0); n != 10 || err != nil || string(p) != "ab\x00\x00\x00fghij" {
		t.Errorf("got %q, %d, %v", p, n, err)
	}
}

type request struct {
	command        uint16
	cookie, offset uint64
	length         uint32
}

func readRequest(t testing.TB, s net.Conn) request {
	var b [28]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		t.Errorf("server: %v", err)
	}
	be := binary.BigEndian
	return request{be.Uint16(b[6:]), be.Uint64(b[8:]), be.Uint64(b[16:]), be.Uint32(b[24:])}
}

// chunk makes a chunk that says it has n bytes and has the given ones.
func chunk(flags, typ uint16, cookie uint64, n uint32, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint32(b, n)
	return append(b, bytes.Join(payload, nil)...)
}
