package nbd

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// need skips the test when a program that it needs is missing.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s, which is not installed", p)
		}
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// image writes a file of n bytes: random data with holes in it.
func image(t testing.TB, dir string, n int64) (path string, data []byte) {
	t.Helper()
	data = make([]byte, n)
	random := rand.NewChaCha8(sha256.Sum256([]byte("image")))
	path = filepath.Join(dir, "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
	const piece = 1 << 20
	for off := int64(0); off < n; off += 2 * piece { // each second MiB stays a hole
		p := data[off:min(off+piece, n)]
		random.Read(p)
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	return path, data
}

// serve starts an NBD server that listens on the unix socket it returns.
func serve(t testing.TB, socket string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		// A test connection would use up a server that serves one client.
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s made no socket", name)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func qemuNBD(t testing.TB, file string, args ...string) string {
	t.Helper()
	need(t, "qemu-nbd")
	socket := filepath.Join(t.TempDir(), "s")
	return serve(t, socket, "qemu-nbd", append([]string{"-k", socket, "-t", "-e", "16", "-r", file}, args...)...)
}

func nbdkit(t testing.TB, args ...string) string {
	t.Helper()
	need(t, "nbdkit")
	socket := filepath.Join(t.TempDir(), "s")
	return serve(t, socket, "nbdkit", append([]string{"-f", "-U", socket}, args...)...)
}

func dial(t testing.TB, d Dialer, socket, export string, contexts ...string) *Conn {
	t.Helper()
	var c *Conn
	for try := 0; ; try++ { // the socket may be there before the server listens on it
		var err error
		if c, err = d.Dial(testContext(t), "unix", socket, export, contexts...); err == nil {
			break
		}
		if _, refused := err.(interface{ Timeout() bool }); try > 50 || refused {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// fake runs serve on the server's end of a connection whose client end it
// returns as a Conn that is past the handshake, with the given size.
func fake(t testing.TB, d Dialer, size int64, contexts map[string]uint32, serve func(net.Conn)) *Conn {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(server)
	}()
	c := newConn(nc, d.withDefaults())
	c.size, c.structured, c.contexts = size, true, contexts
	c.start()
	t.Cleanup(func() {
		c.Abandon()
		server.Close()
		<-done
	})
	return c
}
