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
)

// maria is a real MariaDB server of a test.
type maria struct {
	*lab
	data, socket string
	pid          int
}

func newMaria(t *testing.T) *maria {
	t.Helper()
	bin := installed(t, "/usr/sbin/mariadbd")
	if os.Geteuid() != 0 {
		t.Skip("MariaDB lets root in by its socket: the test must be root")
	}
	l := newLab(t)
	home := l.folder("maria", "mysql")
	m := &maria{lab: l, data: filepath.Join(home, "data"), socket: filepath.Join(home, "sock")}
	l.folder("maria/data", "mysql")
	l.as("mysql", "/usr/bin/mariadb-install-db", "--no-defaults", "--datadir="+m.data, "--user=mysql", "--auth-root-authentication-method=socket", "--skip-test-db")
	l.write("etc/mysql/my.cnf", "[client-server]\nsocket = "+m.socket+"\n[mysqld]\ndatadir = "+m.data+"\nskip-networking\nlog-bin\nserver-id = 1\ninnodb-buffer-pool-size = 8M\ninnodb-log-file-size = 4M\ninnodb-flush-log-at-trx-commit = 0\n")
	m.pid = l.serve("mysql", bin, "--defaults-file="+filepath.Join(l.dir, "etc/mysql/my.cnf")).Process.Pid
	eventually(t, "MariaDB starts", func() bool {
		_, err := l.try("", m.client("SELECT 1")...)
		return err == nil
	})
	return m
}

func (m *maria) client(sql string) []string {
	return []string{"/usr/bin/mariadb", "--no-defaults", "--batch", "--skip-column-names", "--user=root", "--socket=" + m.socket, "-e", sql}
}

// says asks the server by its own client.
func (m *maria) says(sql string) string {
	m.t.Helper()
	return m.as("", m.client(sql)...)
}

func (m *maria) inventory(t *testing.T) agent.Found {
	t.Helper()
	found, err := inventory(t, mysql{m.guest()})
	if err != nil {
		t.Fatal(err)
	}
	return found["mysql"]
}

// TestMariaDB takes a server through a run: writers wait while its tables are
// locked, a copy has what was committed, and the place in the binary log is the
// server's.
func TestMariaDB(t *testing.T) {
	m := newMaria(t)
	m.says("CREATE DATABASE shop; CREATE TABLE shop.t (n INT) ENGINE=InnoDB; CREATE TABLE shop.old (n INT) ENGINE=MyISAM; INSERT INTO shop.t VALUES (1); INSERT INTO shop.old VALUES (1)")
	f := m.inventory(t)
	o := f.Object
	if o.Version != m.says("SELECT @@version") || o.State != "running" || o.Consistency.Level != object.Application || o.Details["variant"] != "MariaDB" {
		t.Errorf("%+v", o)
	}
	if got, want := paths(o), map[string]string{"data": m.data, "config": "/etc/mysql"}; !reflect.DeepEqual(got, want) {
		t.Errorf("paths %v, want %v", got, want)
	}
	var names []string
	for _, d := range o.Details["databases"].([]object.Details) {
		names = append(names, d["name"].(string))
		if d["name"] == "shop" && (d["tables"] != int64(2) || fmt.Sprint(d["bytes"]) != m.says("SELECT SUM(DATA_LENGTH+INDEX_LENGTH) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop'")) {
			t.Errorf("shop: %v", d)
		}
	}
	if got, want := strings.Join(names, "\n"), m.says("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA ORDER BY 1"); got != want {
		t.Errorf("databases %q, want %q", got, want)
	}
	if _, err := f.Frozen(); err == nil {
		t.Error("the tables were not locked yet")
	}

	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := m.try("", m.client("INSERT INTO shop.t VALUES (2)")...)
		wrote <- err
	}()
	eventually(t, "a writer waits", func() bool {
		return strings.Contains(m.says("SELECT STATE FROM information_schema.PROCESSLIST"), "lock")
	})
	details, err := f.Frozen()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%v\t%v", details["binlog_file"], details["binlog_position"]), m.says("SHOW MASTER STATUS"); got != strings.Join(strings.Split(want, "\t")[:2], "\t") {
		t.Errorf("place in the binary log %q, the server says %q", got, want)
	}
	twin := m.copy(t)
	select {
	case err := <-wrote:
		t.Errorf("a writer did not wait: %v", err)
	default:
	}
	if err := f.Post(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-wrote; err != nil {
		t.Errorf("the writer, after the post step: %v", err)
	}
	if got := m.says("SELECT COUNT(*) FROM shop.t"); got != "2" {
		t.Errorf("%s rows", got)
	}
	if got := twin.says("SELECT (SELECT COUNT(*) FROM shop.t), (SELECT COUNT(*) FROM shop.old)"); got != "1\t1" {
		t.Errorf("the copy has %q", got)
	}
	if got := twin.says("CHECK TABLE shop.t, shop.old"); strings.Count(got, "\tOK") != 2 {
		t.Errorf("the copy's tables: %s", got)
	}
}

// copy copies the files of a server whose tables are locked, and starts another
// one on them. No redo log is taken for granted: it is copied as it is.
func (m *maria) copy(t *testing.T) *maria {
	t.Helper()
	l := newLab(t)
	l.as("", "cp", "-a", filepath.Join(m.dir, "maria"), l.dir)
	home := filepath.Join(l.dir, "maria")
	twin := &maria{lab: l, data: home + "/data", socket: home + "/sock2"}
	l.write("etc/mysql/my.cnf", strings.NewReplacer(m.socket, twin.socket, m.dir, l.dir).Replace(readFile(t, filepath.Join(m.dir, "etc/mysql/my.cnf"))))
	twin.pid = l.serve("mysql", "/usr/sbin/mariadbd", "--defaults-file="+filepath.Join(l.dir, "etc/mysql/my.cnf")).Process.Pid
	eventually(t, "the copy starts", func() bool {
		_, err := l.try("", twin.client("SELECT 1")...)
		return err == nil
	})
	return twin
}

// TestMariaDBLockLost: a lock that somebody has taken away is said.
func TestMariaDBLockLost(t *testing.T) {
	m := newMaria(t)
	f := m.inventory(t)
	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	m.says("KILL " + m.says("SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND = 'Sleep' LIMIT 1"))
	// The client notices when it is asked, or when its pipe ends; the server has
	// dropped the lock at once.
	_, frozenErr := f.Frozen()
	postErr := f.Post(context.Background())
	if frozenErr == nil && postErr == nil {
		t.Error("the lock was lost, and nobody says so")
	}
	m.says("CREATE DATABASE free")
}

// TestMariaDBBusy: a statement that runs for long is not waited for beyond the
// limit, and those that came after it go on.
func TestMariaDBBusy(t *testing.T) {
	m := newMaria(t)
	m.says("CREATE DATABASE shop; CREATE TABLE shop.t (n INT); INSERT INTO shop.t VALUES (1)")
	f := m.inventory(t)
	slow := make(chan error, 1)
	go func() {
		_, err := m.try("", m.client("UPDATE shop.t SET n = SLEEP(5)")...)
		slow <- err
	}()
	eventually(t, "a statement runs", func() bool {
		return strings.Contains(m.says("SELECT INFO FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID()"), "SLEEP")
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	start := time.Now()
	err := f.Pre(ctx)
	if took := time.Since(start); err == nil || took > 5*time.Second {
		t.Errorf("the lock: %v, after %v", err, took)
	}
	if err := f.Post(context.Background()); err != nil {
		t.Errorf("the post step of what failed: %v", err)
	}
	start = time.Now()
	m.says("CREATE DATABASE goes_on")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("others waited for %v", took)
	}
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

// TestMariaDBFails: it does not answer; it is gone.
func TestMariaDBFails(t *testing.T) {
	m := newMaria(t)
	f := m.inventory(t)
	if err := syscall.Kill(m.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	start := time.Now()
	if err := f.Pre(ctx); err == nil || time.Since(start) > 4*time.Second {
		t.Errorf("it does not answer: %v, after %v", err, time.Since(start))
	}
	ctx, cancel = context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	start = time.Now()
	found, err := mysql{m.guest()}.Inventory(ctx)
	if err == nil || time.Since(start) > 4*time.Second || len(found) != 1 || found[0].Object.Consistency.Level != object.Filesystem {
		t.Errorf("it does not answer: %v, after %v: %+v", err, time.Since(start), found)
	}
	if err := syscall.Kill(m.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool {
		_, err := m.try("", m.client("SELECT 1")...)
		return err != nil
	})
	if f := m.inventory(t); f.Object.Consistency.Level != object.Filesystem || f.Pre != nil {
		t.Errorf("it is gone: %+v", f.Object)
	}
}

func TestBinlogStatement(t *testing.T) {
	for version, want := range map[string]string{"MySQL 5.7.44-log": "MASTER", "MySQL 8.0.36": "MASTER", "MySQL 8.4.2": "BINARY LOG", "MySQL 9.1.0": "BINARY LOG", "MariaDB 11.8.1-MariaDB": "MASTER", "MySQL ": "MASTER"} {
		variant, v, _ := strings.Cut(version, " ")
		if got := binlogStatement(variant, v); !strings.Contains(got, want) {
			t.Errorf("%s: %s", version, got)
		}
	}
}
