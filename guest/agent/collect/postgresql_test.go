//go:build linux

package collect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// cluster is a real PostgreSQL cluster of a test, in Debian's way.
type cluster struct {
	*lab
	bin, name  string
	data, wal  string
	tables     string
	config     string
	server     int // its process
	configured string
}

func newCluster(t *testing.T, l *lab, name string, settings ...string) *cluster {
	t.Helper()
	c := &cluster{lab: l, name: name, bin: filepath.Dir(installed(t, "/usr/lib/postgresql/*/bin/initdb"))}
	home := l.folder(name, "postgres")
	c.data, c.wal, c.tables = filepath.Join(home, "data"), filepath.Join(home, "wal"), l.folder(name+"/tables", "postgres")
	l.as("postgres", c.bin+"/initdb", "-D", c.data, "-X", c.wal, "-U", "postgres", "--no-sync", "-A", "peer", "-E", "UTF8", "--no-locale")
	version := strings.TrimSpace(readFile(t, c.data+"/PG_VERSION"))
	c.config = "etc/postgresql/" + version + "/" + name + "/postgresql.conf"
	c.configured = "postgresql@" + version + "-" + name
	l.write(c.config, strings.Join(append([]string{
		"data_directory = '" + c.data + "'", "unix_socket_directories = '" + home + "'", "listen_addresses = ''", "port = 5444",
		"hba_file = '" + c.data + "/pg_hba.conf'", "ident_file = '" + c.data + "/pg_ident.conf'", "max_connections = 20", "shared_buffers = 1MB", "dynamic_shared_memory_type = mmap",
		"autovacuum = off", "checkpoint_timeout = 1h",
	}, settings...), "\n"))
	return c
}

func (c *cluster) start() {
	c.t.Helper()
	c.server = c.serve("postgres", c.bin+"/postgres", "-D", c.data, "-c", "config_file="+filepath.Join(c.dir, c.config)).Process.Pid
	eventually(c.t, "PostgreSQL starts", func() bool {
		_, err := c.try("postgres", append(c.psql(), "-c", "SELECT 1")...)
		return err == nil
	})
}

func (c *cluster) stop() {
	c.t.Helper()
	c.as("postgres", c.bin+"/pg_ctl", "stop", "-D", c.data, "-m", "fast", "-w")
}

func (c *cluster) psql() []string {
	return []string{c.bin + "/psql", "-X", "-A", "-t", "-h", filepath.Join(c.dir, c.name), "-p", "5444", "-d", "postgres"}
}

// says asks the cluster by psql.
func (c *cluster) says(sql string) string {
	c.t.Helper()
	return c.as("postgres", append(c.psql(), "-c", sql)...)
}

// controldata is what pg_controldata says of the cluster.
func (c *cluster) controldata(key string) string {
	c.t.Helper()
	for line := range strings.Lines(c.as("postgres", c.bin+"/pg_controldata", "-D", c.data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			return strings.TrimSpace(v)
		}
	}
	c.t.Fatalf("pg_controldata does not say %q", key)
	return ""
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPostgreSQL takes a cluster with a log and a tablespace of its own through
// a run, compares what is said of it with PostgreSQL's own words, and starts a
// second server on a copy.
func TestPostgreSQL(t *testing.T) {
	c := newCluster(t, newLab(t), "shop")
	c.start()
	c.says("CREATE TABLESPACE archive LOCATION '" + c.tables + "'")
	c.says("CREATE DATABASE \"other db\"")
	c.says("CREATE TABLE t (n int) TABLESPACE archive; CREATE TABLE u (n int); INSERT INTO u SELECT generate_series(1, 20000)")

	found, err := inventory(t, postgres{c.guest()})
	if err != nil {
		t.Fatal(err)
	}
	f, ok := found[c.configured]
	if !ok {
		t.Fatalf("%s is not among %v", c.configured, found)
	}
	o := f.Object
	want := map[string]string{"data": c.data, "wal": c.wal, "tablespace-archive": c.tables, "config": "/" + filepath.Dir(c.config)}
	if got := paths(o); !reflect.DeepEqual(got, want) {
		t.Errorf("paths %v, want %v", got, want)
	}
	if o.Version != c.says("SHOW server_version") || o.State != "running" || o.Consistency.Level != object.Application || o.Details["standby"] != false {
		t.Errorf("%+v", o)
	}
	for _, d := range o.Details["databases"].([]object.Details) {
		if got, want := fmt.Sprint(d["bytes"]), c.says(fmt.Sprintf("SELECT pg_database_size('%s')", d["name"])); got != want {
			t.Errorf("database %s: %s bytes, want %s", d["name"], got, want)
		}
	}
	if n := len(o.Details["databases"].([]object.Details)); n != 4 { // with template0 and template1
		t.Errorf("%d databases", n)
	}
	for k, v := range o.Details["settings"].(object.Details) {
		if want := c.says("SELECT setting FROM pg_settings WHERE name = '" + k + "'"); v != want {
			t.Errorf("%s = %v, want %s", k, v, want)
		}
	}

	before := c.controldata("Latest checkpoint location")
	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	if after := c.controldata("Latest checkpoint location"); after == before {
		t.Errorf("no checkpoint was written: %s", after)
	}
	c.says("INSERT INTO t VALUES (1), (2), (3)") // after the checkpoint, before the freeze
	details, err := f.Frozen()
	if err != nil {
		t.Fatal(err)
	}
	for key, said := range map[string]string{
		"system_identifier": "Database system identifier", "cluster_state": "Database cluster state", "checkpoint": "Latest checkpoint location",
		"redo": "Latest checkpoint's REDO location", "timeline": "Latest checkpoint's TimeLineID",
	} {
		if got, want := fmt.Sprint(details[key]), c.controldata(said); got != want {
			t.Errorf("frozen: %s is %s, want %s", key, got, want)
		}
	}
	if n := openFiles(t, c.data); n != 1 {
		t.Errorf("%d files of the cluster are open before the post step, want 1", n)
	}
	copied := c.copy(t)
	if err := f.Post(context.Background()); err != nil {
		t.Error(err)
	}
	if n := openFiles(t, c.data); n != 0 {
		t.Errorf("%d files of the cluster are open after the post step", n)
	}
	copied.start()
	if got := copied.says("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)"); got != "3|20000" {
		t.Errorf("the copy has %s rows", got)
	}
	if f.Stop == nil || f.Start == nil {
		t.Error("nobody knows how to stop and start it")
	}
}

// openFiles counts the test's own open files below a directory.
func openFiles(t *testing.T, dir string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir) {
			n++
		}
	}
	return n
}

// copy copies the files of an idle cluster, which are then what a freeze would
// have, to a lab of its own.
func (c *cluster) copy(t *testing.T) *cluster {
	t.Helper()
	l := newLab(t)
	l.as("", "cp", "-a", filepath.Join(c.dir, c.name), l.dir)
	home := filepath.Join(l.dir, c.name)
	twin := &cluster{lab: l, bin: c.bin, name: c.name, data: home + "/data", wal: home + "/wal", tables: home + "/tables", config: c.config}
	l.write(c.config, strings.ReplaceAll(readFile(t, filepath.Join(c.dir, c.config)), c.dir, l.dir))
	links, _ := filepath.Glob(twin.data + "/pg_tblspc/*") // a good pattern
	for _, link := range append(links, twin.data+"/pg_wal") {
		target := twin.tables
		if strings.HasSuffix(link, "pg_wal") {
			target = twin.wal
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"data/postmaster.pid", ".s.PGSQL.5444", ".s.PGSQL.5444.lock"} { // /run is not in a copy
		if err := os.Remove(filepath.Join(home, name)); err != nil {
			t.Fatal(err)
		}
	}
	return twin
}

// TestPostgreSQLIsHonest: without fsync, without an answer, or without a server
// nothing is promised that was not checked.
func TestPostgreSQLIsHonest(t *testing.T) {
	l := newLab(t)
	c := newCluster(t, l, "cache", "fsync = off")

	stopped := func() agent.Found {
		t.Helper()
		found, err := inventory(t, postgres{l.guest()})
		if err != nil {
			t.Fatal(err)
		}
		return found[c.configured]
	}
	f := stopped()
	if f.Object.State != "stopped" || f.Object.Consistency.Level != object.Application {
		t.Errorf("shut down: %+v", f.Object)
	}
	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	if d, err := f.Frozen(); err != nil || d["cluster_state"] != "shut down" {
		t.Errorf("shut down: %v, %v", d, err)
	}
	c.start()
	if d, err := f.Frozen(); err == nil {
		t.Errorf("it was started before the freeze: %v", d)
	}
	if err := f.Post(context.Background()); err != nil {
		t.Error(err)
	}

	f = stopped()
	if f.Object.State != "running" || f.Object.Consistency.Level != object.Filesystem || !strings.Contains(f.Object.Consistency.Reason, "fsync") || f.Pre != nil {
		t.Errorf("fsync = off: %+v", f.Object)
	}

	// A server that does not answer.
	if err := syscall.Kill(c.server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	start := time.Now()
	all, err := postgres{l.guest()}.Inventory(ctx)
	if took := time.Since(start); took > 6*time.Second || err == nil {
		t.Errorf("a server that does not answer: %v, after %v", err, took)
	}
	for _, one := range all {
		if one.Object.Name == c.configured && (one.Object.Consistency.Level != object.Filesystem || !strings.Contains(one.Object.Consistency.Reason, "does not answer")) {
			t.Errorf("a server that does not answer: %+v", one.Object.Consistency)
		}
	}
	if err := syscall.Kill(c.server, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	// A server that has crashed, and left its file with its number.
	pidfile := readFile(t, c.data+"/postmaster.pid")
	c.as("postgres", c.bin+"/pg_ctl", "stop", "-D", c.data, "-m", "immediate", "-w")
	l.write("cache/data/postmaster.pid", pidfile)
	f = stopped()
	if f.Object.State != "" || f.Object.Consistency.Level != object.Filesystem || !strings.Contains(f.Object.Consistency.Reason, "crashed") {
		t.Errorf("crashed: %+v", f.Object)
	}
}

// TestPostgreSQLOfAnother: what answers where a cluster should is another one.
func TestPostgreSQLOfAnother(t *testing.T) {
	l := newLab(t)
	a, b := newCluster(t, l, "a"), newCluster(t, l, "b")
	a.start()
	b.start()
	was := readFile(t, a.data+"/postmaster.pid")
	line := strings.Split(was, "\n")
	line[4] = filepath.Join(l.dir, "b")
	l.write("a/data/postmaster.pid", strings.Join(line, "\n"))
	found, err := inventory(t, postgres{l.guest()})
	l.write("a/data/postmaster.pid", was) // before the server looks
	if f := found[a.configured]; err == nil || f.Object.Consistency.Level != object.Filesystem || !strings.Contains(f.Object.Consistency.Reason, "another server") || f.Pre != nil {
		t.Errorf("%v: %+v", err, f.Object)
	}
	if f := found[b.configured]; f.Object.Consistency.Level != object.Application {
		t.Errorf("%+v", f.Object)
	}
}

// TestPostgreSQLSomewhere: one that nothing leads to but its processes.
func TestPostgreSQLSomewhere(t *testing.T) {
	l := newLab(t)
	c := newCluster(t, l, "hidden")
	c.start()
	if err := os.RemoveAll(filepath.Join(l.dir, "etc")); err != nil {
		t.Fatal(err)
	}
	found, err := inventory(t, postgres{l.guest()})
	f, ok := found[c.configured]
	if !ok {
		t.Fatalf("%v: %s is not among %v", err, c.configured, found)
	}
	if f.Object.Consistency.Level != object.Application || paths(f.Object)["data"] != c.data {
		t.Errorf("%+v", f.Object)
	}
	if err := f.Pre(context.Background()); err != nil {
		t.Error(err)
	}
	if err := f.Post(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestCheckpointFails: what the server refuses is no success.
func TestCheckpointFails(t *testing.T) {
	l := newLab(t)
	c := newCluster(t, l, "gone")
	c.start()
	found, err := inventory(t, postgres{l.guest()})
	if err != nil {
		t.Fatal(err)
	}
	c.stop()
	if err := found[c.configured].Pre(context.Background()); err == nil {
		t.Error("a checkpoint of a server that is gone succeeded")
	}
	if d, err := found[c.configured].Frozen(); err != nil || d["cluster_state"] != "shut down" {
		t.Errorf("the file is still read: %v, %v", d, err)
	}
	if err := found[c.configured].Post(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestPostmasterFile(t *testing.T) {
	for text, want := range map[string]string{
		"17\n/data\n1\n5432\n/run/postgresql\nlocalhost\n": "17 5432 /run/postgresql",
		"17\n": "17 0 ", "": "0 0 ", "-4\n": "0 0 ", "x": "0 0 ", "9\n\n\n99999\nrelative\n": "9 0 ",
	} {
		pid, port, socket := postmaster(text)
		if got := fmt.Sprintf("%d %d %s", pid, port, socket); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

var _ discover.Root = labTree{}
