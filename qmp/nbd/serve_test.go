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
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// memory is a Target that keeps what it gets.
type memory struct {
	mu     sync.Mutex
	image  []byte
	zeroed int64
	fail   error
}

func (m *memory) Write(_ context.Context, off int64, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.image[off:], data)
	return m.fail
}

func (m *memory) WriteZeroes(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.image[off : off+n])
	m.zeroed += n
	return m.fail
}

func startServer(t testing.TB, size int64) (*memory, string) {
	t.Helper()
	m := &memory{image: bytes.Repeat([]byte{0xee}, int(size))}
	socket := filepath.Join(t.TempDir(), "s")
	s, err := Serve(socket, "disk", size, os.Geteuid(), os.Getegid(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return m, socket
}

// TestServeTakesWhatQEMUWrites: qemu-img, whose NBD client is QEMU's own,
// copies an image with holes into the server.
func TestServeTakesWhatQEMUWrites(t *testing.T) {
	need(t, "qemu-img")
	const size = 8<<20 + 512
	path, data := image(t, t.TempDir(), size)
	m, socket := startServer(t, size)
	out, err := exec.Command("qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", "--target-image-opts", path,
		"driver=nbd,server.type=unix,server.path="+socket+",export=disk").CombinedOutput()
	if err == nil {
		// --target-is-zero leaves zeros out: ours has other bytes there.
		out, err = exec.Command("qemu-img", "convert", "-n", "-f", "raw", "-S", "0", "--target-image-opts", path,
			"driver=nbd,server.type=unix,server.path="+socket+",export=disk").CombinedOutput()
	}
	if err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !bytes.Equal(m.image, data) {
		t.Error("the server has not what was written")
	}
}

// TestServeOwnClient: writes, zeros, a refusal, and a range outside.
func TestServeOwnClient(t *testing.T) {
	m, socket := startServer(t, 1<<20)
	if _, err := Dial(testContext(t), "unix", socket, "other"); !errors.Is(err, ErrNoExport) {
		t.Errorf("an export that is not there: %v", err)
	}
	c := dial(t, Dialer{}, socket, "disk")
	if _, err := c.WriteAt([]byte("hello"), 100); err != nil {
		t.Fatal(err)
	}
	if err := c.Zero(4096, 8192); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a server that cannot be read from was read")
	}
	m.mu.Lock()
	if string(m.image[100:105]) != "hello" || m.zeroed != 8192 {
		t.Errorf("%q, %d zeros", m.image[100:105], m.zeroed)
	}
	m.fail = syscall.ENOSPC
	m.mu.Unlock()
	if _, err := c.WriteAt(make([]byte, 10), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the target's error became %v", err)
	}
}

// TestServeOutlivesBadClients: rubbish ends its own connection only, and none
// of it makes the server take memory or wait for ever.
func TestServeOutlivesBadClients(t *testing.T) {
	m, socket := startServer(t, 1<<20)
	greet := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	option := func(id, n uint32, data []byte) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, id)
		return append(binary.BigEndian.AppendUint32(b, n), data...)
	}
	open := append(bytes.Clone(greet), option(optGo, 10, append([]byte{0, 0, 0, 4}, "disk\x00\x00"...))...)
	for name, sent := range map[string][]byte{
		"nothing":             {},
		"old client":          make([]byte, 4),
		"wrong magic":         append(bytes.Clone(greet), make([]byte, 16)...),
		"huge option":         append(bytes.Clone(greet), option(optGo, 1<<31, nil)...),
		"short go":            append(bytes.Clone(greet), option(optGo, 2, []byte{0, 0})...),
		"name past its end":   append(bytes.Clone(greet), option(optGo, 6, []byte{255, 255, 255, 255, 0, 0})...),
		"abort":               append(bytes.Clone(greet), option(optAbort, 0, nil)...),
		"wrong request":       append(bytes.Clone(open), make([]byte, 28)...),
		"huge write":          append(bytes.Clone(open), appendRequest(nil, cmdWrite, 1, 0, 1<<31)...),
		"write cut short":     append(bytes.Clone(open), appendRequest(nil, cmdWrite, 1, 0, 4096)...),
		"write outside":       append(append(bytes.Clone(open), appendRequest(nil, cmdWrite, 1, 1<<63, 4)...), 1, 2, 3, 4),
		"zeros outside":       append(bytes.Clone(open), appendRequest(nil, cmdWriteZeroes, 1, 1<<20, 1)...),
		"unknown command":     append(bytes.Clone(open), appendRequest(nil, 99, 1, 0, 0)...),
		"options without end": append(bytes.Clone(greet), bytes.Repeat(option(optStructuredReply, 0, nil), 40)...),
	} {
		nc, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = nc.Write(sent) // the server may have hung up already
		nc.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the server waits", name)
		}
		nc.Close()
	}
	if m.zeroed > 0 || !bytes.Equal(m.image, bytes.Repeat([]byte{0xee}, 1<<20)) {
		t.Error("something was written")
	}
	c := dial(t, Dialer{}, socket, "disk")
	if _, err := c.WriteAt([]byte{1}, 0); err != nil {
		t.Error(err)
	}
}

// FuzzServe: whatever a client sends, the server ends and writes only inside.
func FuzzServe(f *testing.F) {
	greet := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	goOption := binary.BigEndian.AppendUint64(nil, magicOption)
	goOption = append(goOption, 0, 0, 0, optGo, 0, 0, 0, 10, 0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 0)
	open := append(bytes.Clone(greet), goOption...)
	f.Add(open)
	f.Add(append(append(bytes.Clone(open), appendRequest(nil, cmdWrite, 7, 10, 3)...), 1, 2, 3))
	f.Add(append(bytes.Clone(open), appendRequest(nil, cmdWriteZeroes, 7, 0, 4096)...))
	f.Add(append(bytes.Clone(open), appendRequest(nil, cmdDisconnect, 7, 0, 0)...))
	f.Fuzz(func(t *testing.T, sent []byte) {
		s := &Server{export: "disk", size: 4096, target: &memory{image: make([]byte, 4096)}}
		r := bytes.NewReader(sent)
		ok, err := s.handshake(r, io.Discard)
		for n := 0; ok && err == nil; n++ {
			if n > len(sent) {
				t.Fatal("more requests than bytes")
			}
			ok, err = s.request(context.Background(), r, io.Discard)
		}
	})
}
