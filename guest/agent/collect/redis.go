//go:build linux

package collect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// redis finds Redis, Valkey and KeyDB. One with an append-only file has every
// command that it answered in it; one without is told to write its data to disk.
type redis struct{ guest }

func (redis) Name() string { return "redis" }

// Inventory is agent.Collector's.
func (g redis) Inventory(ctx context.Context) ([]agent.Found, error) {
	root := g.open()
	defer root.Close()
	servers, missed := discover.Redises(ctx, root)
	processes := g.processes("redis-server", "valkey-server", "keydb-server")
	var found []agent.Found
	taken := map[string]bool{}
	for _, r := range servers {
		var one *process
		for i, p := range processes {
			if serves(p.arguments(), r) && (r.Data == "" || p.in(r.Data)) {
				one, processes = &p, slices.Delete(slices.Clone(processes), i, i+1)
				break
			}
		}
		f, err := g.server(ctx, root, r, one)
		missed = both(missed, err)
		taken[r.Name] = true
		found = append(found, f)
	}
	for _, p := range processes { // those that run where no configuration leads to
		if p.cwd() == "" {
			continue // it is over, and its parent has not noticed
		}
		r := untold(p, taken)
		f, err := g.server(ctx, root, r, &p)
		missed = both(missed, err)
		found = append(found, f)
	}
	return found, missed
}

// untold describes a server by its process alone.
func untold(p process, taken map[string]bool) discover.Redis {
	r := discover.Redis{Name: "redis", Dump: "dump.rdb", Save: true, Port: 6379, Address: "127.0.0.1"}
	for _, w := range strings.Fields(strings.Join(p.arguments(), " ")) {
		if socket, ok := strings.CutPrefix(w, "unixsocket:"); ok {
			r.Port, r.Socket = 0, socket
		} else if i := strings.LastIndexByte(w, ':'); i >= 0 {
			if port, err := strconv.ParseUint(w[i+1:], 10, 16); err == nil {
				r.Port = int(port)
			}
			if host := strings.Trim(w[:i], "[]"); net.ParseIP(host) != nil && !net.ParseIP(host).IsUnspecified() {
				r.Address = host
			}
		}
	}
	if r.Port != 6379 {
		r.Name = "redis@" + strconv.Itoa(r.Port)
	}
	if taken[r.Name] || r.Port == 0 {
		r.Name = object.PartOf(fmt.Sprintf("redis@%d-%.100s", r.Port, path.Base(p.cwd())))
	}
	for base, n := r.Name, 2; taken[r.Name]; n++ {
		r.Name = fmt.Sprintf("%s-%d", base, n)
	}
	taken[r.Name] = true
	return r
}

// redisServer is a server that runs.
type redisServer struct {
	network, address, password string
}

// listens says whether anybody can be connected to.
func (s redisServer) listens() bool {
	conn, err := net.DialTimeout(s.network, s.address, time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

func (s redisServer) dial(ctx context.Context) (*redisConn, error) {
	return dialRedis(ctx, s.network, s.address, s.password)
}

// server describes a server; p is its process, nil if it does not run.
func (g redis) server(ctx context.Context, root discover.Root, r discover.Redis, p *process) (agent.Found, error) {
	pid := 0
	if p != nil {
		pid = p.pid
		if r.Data == "" {
			r.Data = p.cwd()
		}
	}
	f := agent.Found{Object: r.Object()}
	f.Object.Service = g.known(ctx, pid, r.Service)
	f.Stop, f.Start = service(root, f.Object.Service, strings.TrimSuffix(path.Base(r.Config), ".conf")+"-server", "redis-server", "redis")
	s := redisServer{network: "tcp", address: net.JoinHostPort(r.Address, strconv.Itoa(r.Port)), password: r.Password}
	if r.Socket != "" {
		s.network, s.address = "unix", r.Socket
	}
	if p == nil {
		f.Object.State = "stopped"
		promise(&f.Object, object.Application, "the server is stopped: its files are complete")
		f.PreWhat = "look whether it is stopped still"
		f.Pre = func(context.Context) error {
			if s.listens() {
				return errors.New("the server was started since the inventory")
			}
			return nil
		}
		if s.listens() {
			f.Object.State, f.Pre = "", nil
			promise(&f.Object, object.Filesystem, "where the server listens somebody answers that does not run in its directory: a container, or a server that was told another one")
		}
		return f, nil
	}
	f.Object.State = "running"
	c, err := s.dial(ctx)
	if err != nil {
		promise(&f.Object, object.Filesystem, "the server was not told, for it does not answer: "+err.Error())
		return f, fmt.Errorf("%s does not answer on %s, with the password of %q: %w", r.Name, s.address, r.Config, err)
	}
	defer c.close()
	if err := s.describe(ctx, c, &f, r.Save); err != nil {
		promise(&f.Object, object.Filesystem, "the server was not told, for it does not say how it keeps its data: "+err.Error())
		return f, fmt.Errorf("%s: %w", r.Name, err)
	}
	return f, nil
}

// serves says whether a process is a configuration's server: its title is
// "redis-server 127.0.0.1:6379", with the socket in the place of port 0.
func serves(args []string, r discover.Redis) bool {
	title := strings.Join(args, " ")
	if r.Port == 0 {
		return strings.Contains(title, r.Socket)
	}
	for _, w := range strings.Fields(title) {
		if strings.HasSuffix(w, ":"+strconv.Itoa(r.Port)) {
			return true
		}
	}
	return strings.Contains(title, r.Config) // titles can be turned off
}

// describe asks a server how it keeps its data, and says what to do before the
// freeze. saves is what its configuration says of saving by itself, if it does
// not tell.
func (s redisServer) describe(ctx context.Context, c *redisConn, f *agent.Found, saves bool) error {
	server, err := c.info(ctx, "server")
	if err != nil {
		return err
	}
	persistence, err := c.info(ctx, "persistence")
	if err != nil {
		return err
	}
	o := &f.Object
	o.Version = object.Text(server["redis_version"])
	if v := server["valkey_version"]; v != "" {
		o.Version = object.Text(v)
	}
	for key, name := range map[string]string{"run_id": "run_id", "config_file": "config_file"} {
		if v := server[key]; v != "" {
			o.Details[name] = object.Text(v)
		}
	}
	for _, section := range []string{"memory", "replication", "keyspace"} {
		more, err := c.info(ctx, section)
		if err != nil {
			continue // a detail
		}
		for k, v := range more {
			switch {
			case k == "used_memory":
				o.Details["memory_bytes"] = number(v)
			case k == "role" || section == "keyspace" && len(o.Details) < 200:
				o.Details[object.Text(k)] = object.Text(v)
			}
		}
	}
	o.Details["last_save"] = number(persistence["rdb_last_save_time"])
	appends := persistence["aof_enabled"] == "1"
	o.Details["append_only"] = appends
	if save, ok := c.config(ctx, "save"); ok {
		saves = save != ""
	}
	o.Details["saves_by_itself"] = saves
	switch {
	case appends:
		promise(o, object.Application, "Redis writes each command to its append-only file before it answers it: what was answered until the freeze is there, but for up to two seconds while the disk is slow")
		f.Pre, f.PreWhat = s.appended, "look whether its append-only file is well"
	case !saves:
		promise(o, object.Filesystem, "Redis keeps its data in memory only, as it is configured: the copy has what was on disk before")
	default:
		promise(o, object.Application, "Redis wrote its data to disk right before the freeze: the copy has what it held then, and not what came after")
		f.Pre, f.PreWhat = s.saved, "BGSAVE"
	}
	return nil
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64) // 0: not known
	return n
}

// appended checks that the append-only file is what it should be.
func (s redisServer) appended(ctx context.Context) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	p, err := c.info(ctx, "persistence")
	switch {
	case err != nil:
		return err
	case p["aof_enabled"] != "1":
		return errors.New("the append-only file was turned off since the inventory")
	case p["aof_last_write_status"] != "ok":
		return fmt.Errorf("the last write to the append-only file failed (aof_last_write_status:%.20s): see Redis' log", p["aof_last_write_status"])
	case p["aof_last_bgrewrite_status"] != "" && p["aof_last_bgrewrite_status"] != "ok":
		return fmt.Errorf("the last rewriting of the append-only file failed (aof_last_bgrewrite_status:%.20s): see Redis' log", p["aof_last_bgrewrite_status"])
	case p["loading"] == "1":
		return errors.New("the server is still loading its data")
	}
	return nil
}

// saved has the server write its data, and waits until it has.
func (s redisServer) saved(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, save)
	defer cancel()
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	p, err := c.info(ctx, "persistence")
	if err != nil {
		return err
	}
	if p["rdb_changes_since_last_save"] == "0" && p["rdb_last_bgsave_status"] == "ok" && p["rdb_bgsave_in_progress"] == "0" && number(p["rdb_saves"]) > 0 {
		return nil // what is on disk is what is in memory
	}
	for try := 1; ; try++ {
		// One that is under way began before the last changes: wait for its end,
		// then begin another. The server may be faster.
		if err := c.idle(ctx); err != nil {
			return err
		}
		if _, err = c.ask(ctx, "BGSAVE"); err == nil {
			break
		}
		if try == 3 || !errors.Is(err, errRefused) {
			return err
		}
	}
	if err := c.idle(ctx); err != nil {
		return err
	}
	if p, err = c.info(ctx, "persistence"); err != nil {
		return err
	}
	if p["rdb_last_bgsave_status"] != "ok" {
		return fmt.Errorf("saving failed (rdb_last_bgsave_status:%.20s): see Redis' log, and whether there is memory for a second process", p["rdb_last_bgsave_status"])
	}
	return nil
}

// idle waits until the server does not save.
func (c *redisConn) idle(ctx context.Context) error {
	for {
		p, err := c.info(ctx, "persistence")
		if err != nil {
			return err
		}
		if p["rdb_bgsave_in_progress"] == "0" && p["aof_rewrite_in_progress"] != "1" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server was still saving: %w", ctx.Err())
		case <-time.After(poll):
		}
	}
}
