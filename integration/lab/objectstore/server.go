package objectstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Server is a running server.
type Server struct {
	Engine    string
	Address   string // host:port, plain http
	AccessKey string
	SecretKey string
	Dir       string // where its data lies

	engine  Engine
	running []*process // the server itself is the last one
	log     *output
	binary  string
}

// process is one that a server consists of.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
}

// The engines that are built. Both create only what does not exist, in versioned buckets
// too, and hold object locks (STORE-LAB.md section 5).
func Versitygw() Engine {
	return Engine{name: "versitygw", module: "github.com/versity/versitygw", command: "cmd/versitygw", version: "v1.8.0",
		start: func(ctx context.Context, binary string, s *Server, dir string) (*exec.Cmd, error) {
			data, versions, iam := filepath.Join(dir, "data"), filepath.Join(dir, "versions"), filepath.Join(dir, "iam")
			for _, d := range []string{data, versions, iam} {
				if err := os.Mkdir(d, 0o755); err != nil {
					return nil, err
				}
			}
			cmd := exec.CommandContext(ctx, binary, "--port", s.Address, "--quiet", "--keep-alive", "--iam-dir", iam, "posix", "--versioning-dir", versions, data)
			cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.AccessKey, "ROOT_SECRET_ACCESS_KEY="+s.SecretKey)
			return cmd, nil
		},
		user: func(s *Server, access, secret string) *exec.Cmd {
			cmd := exec.Command(s.binary, "admin", "--endpoint-url", "http://"+s.Address, "create-user", "--access", access, "--secret", secret, "--role", "user")
			cmd.Env = append(os.Environ(), "ADMIN_ACCESS_KEY_ID="+s.AccessKey, "ADMIN_SECRET_ACCESS_KEY="+s.SecretKey)
			return cmd
		}}
}

// MinIO is the last version that its module has.
func MinIO() Engine {
	return Engine{name: "minio", module: "github.com/minio/minio", version: "v0.0.0-20260212201848-7aac2a2c5b7c",
		start: func(ctx context.Context, binary string, s *Server, dir string) (*exec.Cmd, error) {
			cmd := exec.CommandContext(ctx, binary, "server", filepath.Join(dir, "data"), "--address", s.Address, "--quiet")
			cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.AccessKey, "MINIO_ROOT_PASSWORD="+s.SecretKey,
				"MINIO_BROWSER=off", "MINIO_UPDATE=off", "HOME="+dir, "MINIO_CALLHOME_ENABLE=off")
			return cmd, nil
		}}
}

// startTimeout is for a machine that is busy with other tests.
const startTimeout = time.Minute

// Start runs a server until the test ends. It skips where the server cannot be
// built, and fails where it cannot be started.
func Start(t testing.TB, e Engine) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a real object storage server; not with -short")
	}
	binary, err := e.binary(t.Context(), t.Output())
	if errors.Is(err, ErrBuild) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.run(binary, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// run starts a server on a free port. Another process may take the port in
// between: then it is tried again with another one.
func (e Engine) run(binary, dir string) (*Server, error) {
	var failed []error
	for n := range 3 {
		s := &Server{Engine: e.name, AccessKey: "lab-access-key", SecretKey: "lab-secret-Kq7zP3vXw9", Dir: filepath.Join(dir, fmt.Sprint(n)), engine: e, log: new(output), binary: binary}
		err := e.runOn(binary, s)
		if err == nil {
			return s, nil
		}
		failed = append(failed, fmt.Errorf("start %d: %w", n+1, err))
	}
	return nil, errors.Join(failed...)
}

func (e Engine) runOn(binary string, s *Server) error {
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Address = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	// The server lives until Close; the test's context ends before its cleanups.
	cmd, err := e.start(context.Background(), binary, s, s.Dir)
	if err == nil {
		err = s.launch(cmd)
	}
	if err == nil {
		err = s.wait(s.running[len(s.running)-1].ended)
	}
	if err != nil {
		s.Close()
	}
	return err
}

// launch starts a process that Close ends.
func (s *Server) launch(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // also if the test is killed
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", s.Engine, err)
	}
	p := &process{cmd, make(chan struct{})}
	s.running = append(s.running, p)
	go func() {
		_ = p.cmd.Wait() // killed by Close
		close(p.ended)
	}()
	return nil
}

// wait waits until the server answers, whatever it does.
func (s *Server) wait(ended chan struct{}) error {
	deadline := time.Now().Add(startTimeout)
	for {
		resp, err := http.Get("http://" + s.Address + "/")
		if err == nil && resp.StatusCode < 500 {
			return resp.Body.Close()
		}
		if err == nil {
			_ = resp.Body.Close() // not ready yet
		}
		select {
		case <-ended:
			return fmt.Errorf("%s ended at once: %s", s.Engine, s.log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer within %s: %s", s.Engine, startTimeout, s.log)
		}
	}
}

// Close ends the server, and waits until its folder is nobody's any more.
func (s *Server) Close() {
	for _, p := range s.running {
		_ = p.cmd.Process.Kill() // it may have ended
	}
	for _, p := range s.running {
		<-p.ended
	}
}

// AddUser makes a user without rights, on versitygw and Ceph; a bucket's policy
// may give him some.
func (s *Server) AddUser(t testing.TB, access, secret string) {
	t.Helper()
	if s.engine.user == nil {
		t.Fatalf("no user can be made on %s", s.Engine)
	}
	if out, err := s.engine.user(s, access, secret).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", s.Engine, err, out)
	}
}

// Log gives what the server printed.
func (s *Server) Log() string { return s.log.String() }

// output collects what two goroutines write, at most a megabyte.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b.Len() < 1<<20 {
		o.b.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(o.b.String())
}
