package discover

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"cairn/guest/object"
)

const maxRedis = 100

// Redis is a Redis, Valkey or KeyDB server.
type Redis struct {
	Name     string // of the object: "redis", "redis@6380"
	Config   string // its configuration file
	Included []string
	Data     string // its directory, without symbolic links; "" when the configuration does not say
	Owner    uint32
	Dump     string // name of the RDB file in Data
	// Append says that it keeps an append-only file; AppendFiles are the names
	// in Data that may hold it: a file before version 7, a directory since.
	Append      bool
	AppendFiles []string
	Save        bool // it writes the RDB file by itself
	Port        int  // 0: it listens on no port
	Address     string
	Socket      string
	Log         string
	Password    string // to be let in; not a part of the object
	Service     string
	UnitFile    string
}

// Redises finds the servers that the usual configuration files describe. An
// error says what could not be read; what was found counts.
func Redises(ctx context.Context, root Root) ([]Redis, error) {
	s := look(root)
	var found []Redis
	taken := map[string]bool{}
	for _, pattern := range []string{"/etc/redis/*.conf", "/etc/redis.conf", "/etc/valkey/*.conf", "/etc/valkey.conf", "/etc/keydb/*.conf", "/usr/local/etc/redis/*.conf", "/usr/local/etc/redis.conf"} {
		for _, config := range s.glob(ctx, pattern) {
			r, ok := s.redis(ctx, config)
			same := func(k Redis) bool { return k.Data == r.Data && k.Dump == r.Dump && k.Port == r.Port }
			if !ok || len(found) >= maxRedis || slices.ContainsFunc(found, same) {
				continue
			}
			switch {
			case r.Port == 6379:
				r.Name = free(taken, "redis", "") // the one everybody means
			case r.Port == 0:
				r.Name = free(taken, object.PartOf("redis@"+strings.TrimSuffix(path.Base(config), ".conf")), "")
			default:
				r.Name = free(taken, "redis@"+strconv.Itoa(r.Port), "")
			}
			found = append(found, r)
		}
	}
	return found, s.err()
}

// redis describes the server of a configuration file. Source: redis.conf of
// Redis 7, which Valkey's and KeyDB's equal in what is read here.
func (s *search) redis(ctx context.Context, config string) (Redis, bool) {
	r := Redis{Config: config, Dump: "dump.rdb", Port: 6379, Address: "127.0.0.1", Save: true}
	appendFile, appendDir, sentinel, known := "appendonly.aof", "appendonlydir", false, false
	for _, d := range s.redisDirectives(ctx, config, &r.Included, 0) {
		arg := strings.Join(d[1:], " ")
		known = true
		switch d[0] {
		case "dir":
			r.Data = arg
		case "dbfilename":
			r.Dump = arg
		case "appendonly":
			r.Append = arg == "yes"
		case "appendfilename":
			appendFile = arg
		case "appenddirname":
			appendDir = arg
		case "save":
			r.Save = arg != ""
		case "port":
			r.Port, _ = strconv.Atoi(arg)
		case "tls-port":
			// Spoken to by its other port, or its socket.
		case "bind":
			r.Address = bindAddress(d[1:])
		case "unixsocket":
			r.Socket = arg
		case "logfile":
			r.Log = arg
		case "requirepass":
			r.Password = arg
		case "sentinel":
			sentinel = true
		}
	}
	if sentinel || !known || strings.Contains(path.Base(config), "sentinel") || r.Port < 0 || r.Port > 65535 {
		return Redis{}, false
	}
	if !path.IsAbs(r.Data) {
		r.Data = "" // relative to wherever it was started
	} else if info, ok := s.stat(ctx, r.Data); ok && info.Dir {
		r.Data, r.Owner = info.Path, info.UID
	} else {
		return Redis{}, false // never started
	}
	r.AppendFiles = []string{appendFile, appendDir}
	base := strings.TrimSuffix(path.Base(config), ".conf")
	r.Service, r.UnitFile = s.unit(ctx, redisUnits(base)...)
	return r, true
}

// redisUnits are the units that distributions name after a configuration file.
func redisUnits(base string) []string {
	if instance, ok := strings.CutPrefix(base, "redis-"); ok {
		return []string{"redis-server@" + instance + ".service", "redis@" + instance + ".service"}
	}
	return []string{base + "-server.service", base + ".service", "redis-server@" + base + ".service", "redis@" + base + ".service"}
}

// bindAddress gives the first address that can be connected to.
func bindAddress(addresses []string) string {
	for _, a := range addresses {
		switch a = strings.TrimPrefix(a, "-"); a {
		case "", "*", "0.0.0.0", "::*", "::":
			return "127.0.0.1"
		default:
			return a
		}
	}
	return "127.0.0.1"
}

// redisDirectives gives a configuration's directives in order, with the files
// that it includes.
func (s *search) redisDirectives(ctx context.Context, config string, included *[]string, depth int) [][]string {
	if depth > maxNested || len(*included) > maxMatch {
		return nil
	}
	var all [][]string
	for _, d := range redisConf(string(s.read(ctx, config, maxConfig))) {
		if d[0] != "include" {
			all = append(all, d)
			continue
		}
		if len(d) != 2 || !path.IsAbs(d[1]) {
			continue
		}
		for _, name := range s.glob(ctx, d[1]) {
			*included = append(*included, name)
			all = append(all, s.redisDirectives(ctx, name, included, depth+1)...)
		}
	}
	return all
}

// redisConf splits each line of a text into words, the first in lower case.
func redisConf(text string) [][]string {
	var found [][]string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if d := words(line); len(d) > 0 {
			d[0] = strings.ToLower(d[0])
			found = append(found, d)
		}
	}
	return found
}

// words splits a line at spaces that are not quoted; a backslash takes what is
// after it as it is.
func words(line string) []string {
	var all []string
	var b strings.Builder
	quote, begun := byte(0), false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
			begun = true
		case quote == 0 && (c == '"' || c == '\''):
			quote, begun = c, true
		case c == quote && quote != 0:
			quote = 0
		case quote == 0 && (c == ' ' || c == '\t' || c == '\r' || c == '\n'):
			if begun {
				all = append(all, b.String())
				b.Reset()
			}
			begun = false
		default:
			b.WriteByte(c)
			begun = true
		}
	}
	if begun {
		all = append(all, b.String())
	}
	return all
}

// Object describes a server as a system object, without its consistency.
func (r Redis) Object() object.Object {
	o := object.Object{
		Name:    r.Name,
		Kind:    object.KindRedis,
		Title:   "Redis",
		Service: object.Text(r.Service),
		Details: object.Details{"port": r.Port, "append_only": r.Append, "dump_file": object.Text(r.Dump), "saves_by_itself": r.Save, "owner_uid": r.Owner},
	}
	if r.Port != 0 && r.Port != 6379 {
		o.Title = fmt.Sprintf("Redis on port %d", r.Port)
	}
	place(&o, "data", r.Data)
	place(&o, "config", r.Config)
	for _, name := range r.Included {
		place(&o, "config", name)
	}
	if path.IsAbs(r.Log) && !inside(r.Log, r.Data) {
		place(&o, "log", path.Clean(r.Log))
	}
	if r.Append {
		o.Details["append_files"] = texts(r.AppendFiles, 2)
	}
	if r.Socket != "" {
		o.Details["socket"] = object.Text(r.Socket)
	}
	if r.UnitFile != "" {
		o.Details["unit_file"] = object.Text(r.UnitFile)
	}
	return o
}
