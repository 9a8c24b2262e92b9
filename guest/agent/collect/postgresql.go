//go:build linux

package collect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// postgres finds PostgreSQL's clusters. They are told to write a checkpoint
// right before the freeze: a server that is started on the copy finds nearly
// nothing to recover.
type postgres struct{ guest }

func (postgres) Name() string { return "postgresql" }

// Inventory is agent.Collector's.
func (p postgres) Inventory(ctx context.Context) ([]agent.Found, error) {
	root := p.open()
	defer root.Close()
	clusters, missed := discover.PostgreSQL(ctx, root)
	processes := p.processes("postgres", "postmaster")
	for _, one := range processes { // those that run where no configuration leads to
		dir := one.cwd()
		if dir == "" || slices.ContainsFunc(clusters, func(c discover.Cluster) bool { return one.in(c.Data) }) {
			continue
		}
		if c, err := discover.ClusterAt(ctx, root, dir); err == nil && one.in(c.Data) {
			clusters = append(clusters, c)
		}
	}
	var found []agent.Found
	taken := map[string]bool{}
	for _, c := range clusters {
		f, err := p.cluster(ctx, root, c, processes)
		missed = both(missed, err)
		for n := 2; taken[f.Object.Name]; n++ {
			f.Object.Name = object.PartOf(fmt.Sprintf("postgresql@%s-%.100s-%d", c.Version, c.Name, n))
		}
		taken[f.Object.Name] = true
		found = append(found, f)
	}
	return found, missed
}

// server is a cluster that runs.
type server struct {
	discover.Cluster
	pid    int
	socket string // directory of the one that it listens on
	client program
}

func (p postgres) cluster(ctx context.Context, root discover.Root, c discover.Cluster, processes []process) (agent.Found, error) {
	f := agent.Found{Object: c.Object()}
	s, running := p.server(c, processes)
	f.Object.Service = p.known(ctx, s.pid, c.Service)
	f.Stop, f.Start = p.service(root, c, f.Object.Service)
	if !running {
		p.stopped(&f, c)
		return f, nil
	}
	f.Object.State = "running"
	facts, err := s.ask(ctx)
	if err == nil {
		err = s.same(facts)
	}
	if err != nil {
		promise(&f.Object, object.Filesystem, "the server was not told, for it does not answer: "+err.Error())
		return f, fmt.Errorf("%s does not let its owner (user %d) in on %s, port %d; allow that in pg_hba.conf by \"local all all peer\": %w", f.Object.Name, c.Owner, s.socket, s.Port, err)
	}
	s.describe(&f.Object, facts)
	if facts.Settings["fsync"] != "on" {
		promise(&f.Object, object.Filesystem, "the server runs with fsync = off: it does not keep its files in an order that a copy could rely on")
		return f, nil
	}
	promise(&f.Object, object.Application, facts.promise())
	held := &controlFile{name: path.Join(c.Data, "global/pg_control")}
	f.PreWhat, f.PostWhat = "CHECKPOINT", "close its control file"
	f.Pre = func(ctx context.Context) error { return s.checkpoint(ctx, held, facts.Recovery) }
	f.Frozen = held.frozen
	f.Post = func(context.Context) error { held.close(); return nil }
	return f, nil
}

// server finds the running server of a cluster. Its postmaster.pid may be one
// that a crash has left, or a container's: the process must be there, and in
// the data directory.
func (p postgres) server(c discover.Cluster, processes []process) (server, bool) {
	b, err := os.ReadFile(path.Join(c.Data, "postmaster.pid"))
	if err != nil || len(b) > 64<<10 {
		return server{}, false
	}
	pid, port, socket := postmaster(string(b))
	for _, one := range processes {
		if one.pid != pid || !one.in(c.Data) {
			continue
		}
		s := server{Cluster: c, pid: pid, socket: socket}
		if port != 0 {
			s.Port = port
		}
		if s.socket == "" && len(s.Sockets) > 0 {
			s.socket = s.Sockets[0]
		}
		psql := find("/usr/lib/postgresql/"+c.Version+"/bin/psql", "/usr/pgsql-"+c.Version+"/bin/psql", "psql", "/usr/local/pgsql/bin/psql")
		s.client = program{
			args: []string{psql, "-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-h", s.socket, "-p", strconv.Itoa(s.Port)},
			uid:  c.Owner,
			env:  []string{"PGAPPNAME=cairn-agent", "PGCONNECT_TIMEOUT=5", "PGCLIENTENCODING=UTF8"},
		}
		return s, true
	}
	return server{}, false
}

// postmaster reads postmaster.pid: PID, data directory, time, port, directory
// of the first socket, and more (PostgreSQL's src/include/utils/pidfile.h).
func postmaster(text string) (pid, port int, socket string) {
	line := strings.Split(text, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line[0]))
	if err != nil || pid <= 0 {
		return 0, 0, ""
	}
	if len(line) > 4 {
		if n, err := strconv.ParseUint(strings.TrimSpace(line[3]), 10, 16); err == nil {
			port = int(n)
		}
		if dir := strings.TrimSpace(line[4]); path.IsAbs(dir) {
			socket = dir
		}
	}
	return pid, port, socket
}

// facts are what a server says of itself.
type facts struct {
	Version   string            `json:"version"`
	Recovery  bool              `json:"recovery"` // it is a standby
	Data      string            `json:"data"`
	Settings  map[string]string `json:"settings"`
	Databases []struct {
		Name  string `json:"name"`
		Bytes *int64 `json:"bytes"`
	} `json:"databases"`
	Tablespaces []struct {
		OID      string `json:"oid"`
		Name     string `json:"name"`
		Location string `json:"location"`
	} `json:"tablespaces"`
	sizes error // why they are not known
}

// promise says in what state a copy is after a checkpoint and a freeze.
func (f facts) promise() string {
	switch {
	case f.Recovery:
		return "PostgreSQL, a standby, wrote a restartpoint right before the freeze: all that it had received and flushed is in the data directory and its write-ahead log"
	case f.Settings["synchronous_commit"] == "off":
		return "PostgreSQL wrote a checkpoint right before the freeze: all that was committed is in the data directory and its write-ahead log, but for what was committed in the last moment with synchronous_commit = off"
	}
	return "PostgreSQL wrote a checkpoint right before the freeze: all that was committed until the freeze is in the data directory and its write-ahead log"
}

const (
	askFacts = `SELECT json_build_object('version', current_setting('server_version'), 'recovery', pg_is_in_recovery(), 'data', current_setting('data_directory'),
 'settings', (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'wal_level', 'archive_mode', 'data_checksums', 'block_size', 'server_encoding', 'lc_collate')),
 'databases', (SELECT json_agg(json_build_object('name', datname)) FROM (SELECT datname FROM pg_database ORDER BY datname LIMIT 1000) AS d),
 'tablespaces', (SELECT json_agg(json_build_object('oid', oid::text, 'name', spcname, 'location', pg_tablespace_location(oid))) FROM (SELECT oid, spcname FROM pg_tablespace ORDER BY oid LIMIT 1000) AS t))`
	askSizes = `SELECT json_build_object('databases', (SELECT json_agg(json_build_object('name', datname, 'bytes', pg_database_size(oid))) FROM (SELECT oid, datname FROM pg_database ORDER BY datname LIMIT 1000) AS d))`
)

// ask asks a server for its facts. Sizes take it longer, and may be missing.
func (s *server) ask(ctx context.Context) (facts, error) {
	var f facts
	out, err := s.query(ctx, askFacts, quick)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		return f, fmt.Errorf("its answer is not what was asked for: %w", err)
	}
	var sized facts
	if out, f.sizes = s.query(ctx, askSizes, patience); f.sizes == nil {
		if f.sizes = json.Unmarshal([]byte(out), &sized); f.sizes == nil {
			f.Databases = sized.Databases
		}
	}
	return f, nil
}

// query asks in the database postgres, or in template1 where somebody has
// dropped that.
func (s *server) query(ctx context.Context, sql string, timeout time.Duration) (string, error) {
	p := s.client
	p.timeout, p.input = timeout, sql+";\n"
	p.env = append(slices.Clip(p.env), fmt.Sprintf("PGOPTIONS=-c statement_timeout=%d -c lock_timeout=5000", timeout.Milliseconds()))
	out, err := p.with("-d", "postgres").run(ctx)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 { // psql's: no connection
		if out, err := p.with("-d", "template1").run(ctx); err == nil {
			return out, nil
		}
	}
	return out, err
}

// same refuses the word of a server that is not the cluster's.
func (s *server) same(f facts) error {
	a, err := os.Stat(f.Data)
	if err != nil {
		return err
	}
	if b, err := os.Stat(s.Data); err != nil || !os.SameFile(a, b) {
		return fmt.Errorf("on its socket another server answers, of %.200s", f.Data)
	}
	return nil
}

// describe adds what a server says to the object.
func (s *server) describe(o *object.Object, f facts) {
	o.Version = object.Text(f.Version)
	o.Title = object.Text(fmt.Sprintf("PostgreSQL %s, cluster %s", f.Version, s.Name))
	settings := object.Details{}
	for k, v := range f.Settings {
		settings[k] = object.Text(v)
	}
	databases := []object.Details{}
	total, all := int64(0), true
	for _, db := range f.Databases {
		d := object.Details{"name": object.Text(db.Name)}
		if db.Bytes != nil {
			d["bytes"] = *db.Bytes
			total += *db.Bytes
		}
		all = all && db.Bytes != nil
		databases = append(databases, d)
	}
	o.Details["settings"], o.Details["databases"], o.Details["standby"] = settings, databases, f.Recovery
	o.Details["socket"], o.Details["port"] = object.Text(s.socket), s.Port
	if f.sizes != nil {
		o.Details["sizes"] = object.Text("not known: " + f.sizes.Error())
	}
	for i := range o.Paths {
		p := &o.Paths[i]
		if p.Role == "data" && all && total > 0 && len(s.Tablespaces) == 0 {
			p.Size = total
		}
		for _, t := range f.Tablespaces {
			role := object.PartOf("tablespace-" + t.Name)
			taken := slices.ContainsFunc(o.Paths, func(q object.Path) bool { return q.Role == role })
			if p.Role == "tablespace-"+t.OID && !taken {
				p.Role = role
			}
		}
	}
}

// checkpoint has the server write all that is dirty to its files, and sees that
// the control file says so.
func (s *server) checkpoint(ctx context.Context, held *controlFile, standby bool) error {
	before, err := held.open()
	if err != nil {
		return err
	}
	if _, err := s.query(ctx, "SET statement_timeout = 0; CHECKPOINT", save); err != nil {
		return fmt.Errorf("the checkpoint failed: %w", err)
	}
	after, err := held.read()
	if err != nil {
		return err
	}
	if !standby && after.Checkpoint <= before.Checkpoint { // a standby writes one only if there is something new
		return fmt.Errorf("the server says that it wrote a checkpoint, but %s has the one at %s still", held.name, before.Checkpoint)
	}
	return nil
}

// stopped settles a cluster without a server of the guest's own.
func (p postgres) stopped(f *agent.Found, c discover.Cluster) {
	name := path.Join(c.Data, "global/pg_control")
	held := &controlFile{name: name}
	switch {
	case c.Control == nil:
		promise(&f.Object, object.Filesystem, "no server runs on it, and its control file cannot be read")
	case !strings.HasPrefix(c.Control.State, "shut down"):
		f.Object.State = ""
		promise(&f.Object, object.Filesystem, fmt.Sprintf("its control file says %q, but no server of the guest itself runs on it: it may run in a container, or have crashed", c.Control.State))
	default:
		f.Object.State = "stopped"
		promise(&f.Object, object.Application, "the cluster is shut down: its files are complete")
		f.PreWhat, f.PostWhat = "open its control file", "close its control file"
		f.Pre = func(context.Context) error { _, err := held.open(); return err }
		f.Post = func(context.Context) error { held.close(); return nil }
		f.Frozen = func() (object.Details, error) {
			now, err := held.read()
			if err != nil {
				return nil, err
			}
			if !strings.HasPrefix(now.State, "shut down") {
				return now.Details(), fmt.Errorf("the cluster was started before the freeze: its control file says %q", now.State)
			}
			return now.Details(), nil
		}
	}
}

// service says how a cluster is stopped and started.
func (p postgres) service(root discover.Root, c discover.Cluster, unit string) (stop, start *agent.Command) {
	if stop, start = service(root, unit); stop != nil {
		return stop, start
	}
	if ctl := find("pg_ctlcluster"); ctl != "" && c.ConfigDir != "" {
		return steps([]string{ctl, c.Version, c.Name, "stop", "-m", "fast"}, []string{ctl, c.Version, c.Name, "start"}, "")
	}
	ctl := find("/usr/lib/postgresql/"+c.Version+"/bin/pg_ctl", "/usr/pgsql-"+c.Version+"/bin/pg_ctl", "pg_ctl", "/usr/local/pgsql/bin/pg_ctl")
	owner, err := user.LookupId(strconv.Itoa(int(c.Owner)))
	if ctl == "" || err != nil || c.Config != path.Join(c.Data, "postgresql.conf") {
		return nil, nil
	}
	return steps([]string{ctl, "stop", "-D", c.Data, "-m", "fast", "-w"}, []string{ctl, "start", "-D", c.Data, "-w", "-s", "-l", path.Join(c.Data, "startup.log")}, owner.Username)
}

// controlFile is a cluster's pg_control, opened before the freeze to be read
// during it. One call reads at a time.
type controlFile struct {
	name string
	buf  [discover.ControlSize]byte

	mu   sync.Mutex // not held while reading: close does not wait for a disk
	file *os.File
}

func (c *controlFile) open() (discover.Control, error) {
	f, err := os.Open(c.name)
	if err != nil {
		return discover.Control{}, err
	}
	c.swap(f)
	return c.read()
}

// read reads what the file says now. The server may be writing it: a torn read
// is tried again.
func (c *controlFile) read() (control discover.Control, err error) {
	c.mu.Lock()
	f := c.file
	c.mu.Unlock()
	if f == nil {
		return control, errors.New("the control file was not opened before the freeze")
	}
	for range 3 {
		if _, err = f.ReadAt(c.buf[:], 0); err != nil {
			break
		}
		if control, err = discover.ParseControl(c.buf[:]); err == nil {
			break
		}
	}
	return control, err
}

func (c *controlFile) frozen() (object.Details, error) {
	control, err := c.read()
	if err != nil {
		return nil, err
	}
	return control.Details(), nil
}

func (c *controlFile) close() { c.swap(nil) }

func (c *controlFile) swap(f *os.File) {
	c.mu.Lock()
	old := c.file
	c.file = f
	c.mu.Unlock()
	if old != nil {
		old.Close()
	}
}
