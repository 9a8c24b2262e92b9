//go:build linux

package collect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
)

// newRedis starts a real server on a socket, and gives a function that asks it
// by redis-cli.
func newRedis(t *testing.T, l *lab, name string, settings ...string) (pid int, cli func(args ...string) string) {
	t.Helper()
	bin := installed(t, "/usr/bin/redis-server")
	dir := l.folder(name, "redis")
	config := "etc/redis/" + name + ".conf"
	l.write(config, strings.Join(append([]string{"port 0", "unixsocket " + dir + "/sock", "unixsocketperm 777", "dir " + dir, "requirepass \"pass word\""}, settings...), "\n"))
	pid = l.serve("redis", bin, filepath.Join(l.dir, config)).Process.Pid
	cli = func(args ...string) string {
		t.Helper()
		return l.as("redis", append([]string{"/usr/bin/redis-cli", "--no-auth-warning", "-a", "pass word", "-s", dir + "/sock"}, args...)...)
	}
	eventually(t, "Redis starts", func() bool {
		out, err := l.try("redis", "/usr/bin/redis-cli", "-a", "pass word", "--no-auth-warning", "-s", dir+"/sock", "ping")
		return err == nil && strings.TrimSpace(out) == "PONG"
	})
	return pid, cli
}

// field gives a field of what INFO says.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && k == name {
			return v
		}
	}
	return ""
}

func redisOf(t *testing.T, l *lab, name string) agent.Found {
	t.Helper()
	found, err := inventory(t, redis{l.guest()})
	if err != nil {
		t.Error(err)
	}
	f, ok := found[name]
	if !ok {
		t.Fatalf("%s is not among %v", name, found)
	}
	return f
}

// TestRedisSaves: what was in memory at the pre step is in the file that a
// second server reads.
func TestRedisSaves(t *testing.T) {
	l := newLab(t)
	_, cli := newRedis(t, l, "plain")
	cli("set", "a", "1")
	f := redisOf(t, l, "redis@plain")
	o := f.Object
	if o.Consistency.Level != object.Application || o.State != "running" || o.Version != field(cli("info", "server"), "redis_version") || o.Details["append_only"] != false || o.Details["db0"] != field(cli("info", "keyspace"), "db0") {
		t.Errorf("%+v", o)
	}
	if dir := filepath.Join(l.dir, "plain"); paths(o)["data"] != dir {
		t.Errorf("paths %v", paths(o))
	}
	saves := field(cli("info", "persistence"), "rdb_saves")
	cli("set", "b", "2")
	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	info := cli("info", "persistence")
	if field(info, "rdb_saves") == saves || field(info, "rdb_changes_since_last_save") != "0" || field(info, "rdb_bgsave_in_progress") != "0" {
		t.Errorf("it was not saved: %s", info)
	}
	// Nothing has changed: nothing is written again.
	saves = field(info, "rdb_saves")
	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	if again := field(cli("info", "persistence"), "rdb_saves"); again != saves {
		t.Errorf("saved %s times, it was %s", again, saves)
	}
	twin := newLab(t)
	twin.folder("plain", "redis")
	twin.as("", "cp", "-p", filepath.Join(l.dir, "plain/dump.rdb"), filepath.Join(twin.dir, "plain"))
	_, copied := newRedis(t, twin, "plain")
	if got := copied("mget", "a", "b"); got != "1\n2" {
		t.Errorf("the copy has %q", got)
	}
}

func TestRedisAppends(t *testing.T) {
	l := newLab(t)
	_, cli := newRedis(t, l, "aof", "appendonly yes", "appendfsync always")
	cli("set", "a", "1")
	f := redisOf(t, l, "redis@aof")
	if o := f.Object; o.Consistency.Level != object.Application || o.Details["append_only"] != true || !strings.Contains(o.Consistency.Reason, "append-only") {
		t.Errorf("%+v", o)
	}
	saves := field(cli("info", "persistence"), "rdb_saves")
	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	if again := field(cli("info", "persistence"), "rdb_saves"); again != saves {
		t.Error("it was saved for nothing")
	}
	cli("config", "set", "appendonly", "no")
	if err := f.Pre(context.Background()); err == nil {
		t.Error("the append-only file is off, and that is no error")
	}
}

// TestRedisInMemory: one that its operator lets forget is not told to write.
func TestRedisInMemory(t *testing.T) {
	l := newLab(t)
	_, cli := newRedis(t, l, "cache", `save ""`)
	cli("set", "a", "1")
	f := redisOf(t, l, "redis@cache")
	if o := f.Object; o.Consistency.Level != object.Filesystem || f.Pre != nil || !strings.Contains(o.Consistency.Reason, "memory only") {
		t.Errorf("%+v", o)
	}
	if _, err := os.Stat(filepath.Join(l.dir, "cache/dump.rdb")); err == nil {
		t.Error("a dump was written")
	}
}

// TestRedisFails: it cannot write; it refuses; it does not answer; it is gone.
func TestRedisFails(t *testing.T) {
	l := newLab(t)
	pid, cli := newRedis(t, l, "bad")
	f := redisOf(t, l, "redis@bad")
	cli("set", "a", "1")
	dir := filepath.Join(l.dir, "bad")
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // the server is somebody else, who cannot write any more
		if err := f.Pre(context.Background()); err == nil || !strings.Contains(err.Error(), "saving failed") {
			t.Errorf("it cannot write: %v", err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}

	l.write("etc/redis/bad.conf", strings.ReplaceAll(readFile(t, filepath.Join(l.dir, "etc/redis/bad.conf")), "pass word", "wrong"))
	found, err := inventory(t, redis{l.guest()})
	if o := found["redis@bad"].Object; err == nil || !errors.Is(err, errRefused) || o.Consistency.Level != object.Filesystem || o.State != "running" {
		t.Errorf("it refuses: %v, %+v", err, o)
	}

	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	start := time.Now()
	if err := f.Pre(ctx); err == nil || time.Since(start) > 3*time.Second {
		t.Errorf("it does not answer: %v, after %v", err, time.Since(start))
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool {
		conn, err := net.Dial("unix", filepath.Join(dir, "sock"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	found, err = inventory(t, redis{l.guest()})
	if o := found["redis@bad"].Object; err != nil || o.State != "stopped" {
		t.Errorf("it is gone: %v, %+v", err, o)
	}
	gone := found["redis@bad"]
	if err := gone.Pre(context.Background()); err != nil {
		t.Errorf("it is gone still: %v", err)
	}
	newRedis(t, l, "bad")
	if err := gone.Pre(context.Background()); err == nil {
		t.Error("it was started again, and nobody says so")
	}
}

// TestRedisOnPort: found by its process alone, on a port.
func TestRedisOnPort(t *testing.T) {
	l := newLab(t)
	bin := installed(t, "/usr/bin/redis-server")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	dir := l.folder("anywhere", "redis")
	l.serve("redis", bin, "--port", fmt.Sprint(port), "--dir", dir, "--bind", "127.0.0.1")
	eventually(t, "Redis starts", func() bool {
		out, err := l.try("", "/usr/bin/redis-cli", "-p", fmt.Sprint(port), "ping")
		return err == nil && strings.TrimSpace(out) == "PONG"
	})
	f := redisOf(t, l, fmt.Sprintf("redis@%d", port))
	if paths(f.Object)["data"] != dir || f.Object.Consistency.Level != object.Application {
		t.Errorf("%+v", f.Object)
	}
	if err := f.Pre(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestReplies(t *testing.T) {
	for text, want := range map[string]string{
		"+OK\r\n": "[OK]", ":7\r\n": "[7]", "$-1\r\n": "[]", "$0\r\n\r\n": "[]", "$3\r\na\nb\r\n": "[a\nb]", "*2\r\n$1\r\na\r\n*1\r\n+b\r\n": "[a b]", "*-1\r\n": "[]", "*0\r\n": "[]",
		"-ERR no\r\n": "", "\r\n": "", "$9999999999\r\n": "", "*99999999\r\n": "", "$5\r\nab": "", "?\r\n": "", "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n+a\r\n": "", "$x\r\n": "", "": "",
	} {
		got, err := parseReply(bufio.NewReader(strings.NewReader(text)))
		if (err == nil) != (want != "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// FuzzReply gives a hostile server's bytes to the parser.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{"+OK\r\n", "-ERR\r\n", "$3\r\nabc\r\n", "*2\r\n$1\r\na\r\n:1\r\n", "$-1\r\n", "*9999\r\n$1\r\n", "$1048576\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		reply, err := parseReply(bufio.NewReader(strings.NewReader(string(b))))
		total := 0
		for _, s := range reply {
			total += len(s)
		}
		if err == nil && total > len(b) || len(reply) > maxArray {
			t.Errorf("%d parts, %d bytes", len(reply), total)
		}
	})
}
