//go:build linux

package collect

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// mysql finds MySQL and MariaDB. Its tables are locked against writing from
// right before the freeze until after the thaw, and the place in its binary log
// is noted meanwhile.
type mysql struct{ guest }

func (mysql) Name() string { return "mysql" }

// Inventory is agent.Collector's.
func (g mysql) Inventory(ctx context.Context) ([]agent.Found, error) {
	root := g.open()
	defer root.Close()
	d, missed := discover.MySQL(ctx, root)
	if d == nil {
		return nil, missed
	}
	f := agent.Found{Object: d.Object()}
	pid := 0
	for _, p := range g.processes("mysqld", "mariadbd") {
		if p.in(d.Data) {
			pid = p.pid
			break
		}
	}
	f.Object.Service = g.known(ctx, pid, d.Service)
	f.Stop, f.Start = service(root, f.Object.Service, "mariadb", "mysql", "mysqld")
	if pid == 0 {
		f.Object.State = ""
		promise(&f.Object, object.Filesystem, "no server of the guest itself runs on it: it was stopped, or runs in a container, or has crashed")
		return []agent.Found{f}, missed
	}
	f.Object.State = "running"
	s := &sqlServer{Database: d}
	err := s.connect(ctx)
	if err == nil {
		err = s.describe(ctx, &f.Object)
	}
	if err != nil {
		promise(&f.Object, object.Filesystem, "the server was not told, for it does not answer: "+err.Error())
		return []agent.Found{f}, both(missed, fmt.Errorf("mysql does not let root in on %s; give it the authentication unix_socket (auth_socket), or its password in /root/.my.cnf: %w", d.Socket, err))
	}
	promise(&f.Object, object.Application, d.Variant+"'s tables were locked against writing while the filesystems were frozen, and its logs were on disk")
	held := &sqlLock{server: s}
	f.PreWhat, f.PostWhat = "FLUSH TABLES WITH READ LOCK", "UNLOCK TABLES"
	f.Pre, f.Frozen, f.Post, f.Holds = held.lock, held.frozen, held.unlock, true
	return []agent.Found{f}, missed
}

// sqlServer is a server that runs.
type sqlServer struct {
	*discover.Database
	client program
	binlog string // the statement that tells the place in the binary log; "" if there is none
	lazy   bool   // it does not write its redo log when it is asked to
}

// connect finds a way to be let in as an administrator: as root on the socket,
// which root's own option file may have a password for, or as Debian's
// maintainer.
func (s *sqlServer) connect(ctx context.Context) error {
	client := find("mariadb", "mysql")
	common := []string{"--batch", "--skip-column-names", "--unbuffered", "--skip-reconnect", "--no-auto-rehash", "--local-infile=0", "--protocol=socket", "--socket=" + s.Socket, "--connect-timeout=5"}
	ways := [][]string{{client, "--user=root"}}
	if s.Client != "" {
		ways = append(ways, []string{client, "--defaults-file=" + s.Client})
	}
	var first error
	for _, way := range ways {
		p := program{args: way, timeout: quick, limit: 64 << 10}
		p = p.with(common...)
		p.input = "SELECT @@datadir;\n"
		out, err := p.run(ctx)
		if err == nil {
			s.client = p
			if path.Clean(strings.TrimSpace(out)) != s.Data {
				return fmt.Errorf("on its socket another server answers, of %.200q", strings.TrimSpace(out))
			}
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// rows asks for rows, and gives their columns.
func (s *sqlServer) rows(ctx context.Context, sql string, timeout time.Duration) ([][]string, error) {
	p := s.client
	p.input, p.timeout, p.limit = sql+";\n", timeout, maxOutput
	out, err := p.run(ctx)
	if err != nil {
		return nil, err
	}
	var all [][]string
	for line := range strings.Lines(out) {
		all = append(all, strings.Split(strings.TrimRight(line, "\n"), "\t"))
	}
	return all, nil
}

const (
	askVariables = `SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'version_comment', 'log_bin', 'innodb_flush_log_at_trx_commit', 'innodb_doublewrite', 'sync_binlog', 'default_storage_engine', 'read_only', 'server_id', 'character_set_server')`
	askDatabases = `SELECT SCHEMA_NAME FROM information_schema.SCHEMATA ORDER BY SCHEMA_NAME LIMIT 1000`
	// Statistics may be old: they need not be read from the tables again.
	askTables = `SELECT TABLE_SCHEMA, COUNT(*), COALESCE(SUM(DATA_LENGTH + INDEX_LENGTH), 0), SUM(ENGINE NOT IN ('InnoDB', 'Aria', 'MyISAM', 'MEMORY', 'PERFORMANCE_SCHEMA', 'CSV')) FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' GROUP BY TABLE_SCHEMA LIMIT 1000`
)

// describe asks a server for its version, settings, databases and their sizes.
func (s *sqlServer) describe(ctx context.Context, o *object.Object) error {
	variables, err := s.rows(ctx, askVariables, quick)
	if err != nil {
		return err
	}
	settings := object.Details{}
	for _, v := range variables {
		if len(v) == 2 {
			settings[object.Text(v[0])] = object.Text(v[1])
		}
	}
	o.Details["settings"] = settings
	version, _ := settings["version"].(string)
	o.Version = version
	if strings.Contains(version, "MariaDB") {
		s.Variant = "MariaDB"
	}
	o.Title, o.Details["variant"] = object.Text(s.Variant+" "+version), s.Variant
	if settings["log_bin"] == "ON" {
		s.binlog = binlogStatement(s.Variant, version)
	}
	s.lazy = s.Variant == "MariaDB" && settings["innodb_flush_log_at_trx_commit"] == "0"
	names, err := s.rows(ctx, askDatabases, quick)
	if err != nil {
		return err
	}
	tables, err := s.rows(ctx, askTables, patience)
	if err != nil {
		o.Details["sizes"] = object.Text("not known: " + err.Error())
	}
	databases := []object.Details{}
	for _, n := range names {
		d := object.Details{"name": object.Text(n[0])}
		for _, t := range tables {
			if len(t) == 4 && t[0] == n[0] {
				d["tables"], d["bytes"] = number(t[1]), number(t[2])
			}
		}
		databases = append(databases, d)
	}
	o.Details["databases"] = databases
	return nil
}

// binlogStatement: MySQL renamed it in 8.2, and took the old name away in 8.4.
func binlogStatement(variant, version string) string {
	f := strings.Split(version, ".")
	major, _ := strconv.Atoi(f[0])
	minor := 0
	if len(f) > 1 {
		minor, _ = strconv.Atoi(f[1])
	}
	if variant == "MySQL" && (major > 8 || major == 8 && minor >= 2) {
		return "SHOW BINARY LOG STATUS"
	}
	return "SHOW MASTER STATUS"
}

// sqlLock is a client that holds a global read lock. Its end, however it comes,
// takes the lock away: it reads from a pipe of the agent's.
type sqlLock struct {
	server *sqlServer
	held   *session
	binlog []string // file, position, …
}

const (
	// lockWait is how long the lock may wait for a statement that runs: those
	// that come after it wait as well.
	lockWait = 10 * time.Second
	// lockHeld is how long the lock is held at most if nobody takes it away.
	lockHeld = 300 * time.Second
	locked   = "cairn has the lock"
)

func (l *sqlLock) lock(ctx context.Context) error {
	wait := lockWait
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, max(time.Until(d)-time.Second, time.Second))
	}
	h, err := open(ctx, l.server.client, lockHeld)
	if err != nil {
		return err
	}
	// The logs once before the lock, when nobody waits for it, and once after.
	sql := fmt.Sprintf("SET SESSION lock_wait_timeout = %d, wait_timeout = %d;\nFLUSH ENGINE LOGS;\nFLUSH TABLES WITH READ LOCK;\nFLUSH ENGINE LOGS;\n", int(wait.Seconds()), int(lockHeld.Seconds()))
	if l.server.binlog != "" {
		sql += l.server.binlog + ";\n"
	}
	sql += "SELECT '" + locked + "';\n"
	ctx, cancel := context.WithTimeout(ctx, wait+quick)
	defer cancel()
	lines, err := h.until(ctx, sql, locked)
	if err == nil && l.server.lazy {
		err = logged(ctx, h)
	}
	if err != nil {
		h.end(0) // whatever it waits for
		return fmt.Errorf("the tables could not be locked: %w", err)
	}
	l.held, l.binlog = h, nil
	if l.server.binlog != "" && len(lines) > 0 {
		l.binlog = strings.Split(lines[len(lines)-1], "\t")
	}
	return nil
}

// logged waits until what was committed is in MariaDB's redo log. With
// innodb_flush_log_at_trx_commit = 0 a thread writes it once a second, and FLUSH
// ENGINE LOGS does nothing.
func logged(ctx context.Context, h *session) error {
	goal := int64(0)
	for {
		lines, err := h.until(ctx, "SHOW GLOBAL STATUS WHERE Variable_name IN ('Innodb_lsn_current', 'Innodb_lsn_flushed');\nSELECT '"+locked+"';\n", locked)
		if err != nil {
			return err
		}
		at := map[string]int64{}
		for _, line := range lines {
			name, value, _ := strings.Cut(line, "\t")
			at[name] = number(value)
		}
		if goal == 0 {
			goal = at["Innodb_lsn_current"]
		}
		if goal == 0 {
			return errors.New("innodb_flush_log_at_trx_commit is 0, and the server does not say how much of its log is written")
		}
		if at["Innodb_lsn_flushed"] >= goal {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("innodb_flush_log_at_trx_commit is 0, and the server has not written its log: %w", ctx.Err())
		case <-time.After(poll):
		}
	}
}

// frozen checks that the lock is still held, and gives the place in the binary
// log that was noted under it.
func (l *sqlLock) frozen() (object.Details, error) {
	if l.held == nil {
		return nil, errors.New("the tables were not locked")
	}
	if err := l.held.alive(); err != nil {
		return nil, fmt.Errorf("the lock was lost before the freeze: %w", err)
	}
	if len(l.binlog) < 2 {
		return nil, nil
	}
	return object.Details{"binlog_file": object.Text(l.binlog[0]), "binlog_position": number(l.binlog[1])}, nil
}

// unlock takes the lock away. The client sees only when it is told something
// whether its connection, and the lock, were still there.
func (l *sqlLock) unlock(ctx context.Context) error {
	h := l.held
	l.held = nil
	if h == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	_, err := h.until(ctx, "UNLOCK TABLES;\nSELECT '"+locked+"';\n", locked)
	h.end(time.Second)
	if err != nil {
		return fmt.Errorf("the lock was lost before the thaw, or is not known to have held: %w", err)
	}
	return nil
}
