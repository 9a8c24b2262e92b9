package discover

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"cairn/guest/object"
)

// Database is a MySQL or MariaDB server.
type Database struct {
	Variant string // "MariaDB", "MySQL"
	Version string // as its data directory says, "" if it does not
	Data    string // the data directory, without symbolic links
	Owner   uint32
	// Socket is its unix socket; Client is the option file with which a client
	// is let in as an administrator (Debian's debian.cnf), "" if there is none.
	Socket, Client string
	Port           string
	Configs        []string // files of its configuration
	// Other directories of its data: those of InnoDB, and of its binary log.
	InnoDB, Redo, Undo, Binlog string
	Log                        string
	Databases                  []string          // names of their directories
	Linked                     map[string]string // database → where its directory is a link to
	Settings                   map[string]string
	Service, UnitFile          string
}

// MySQL finds the server that the system's option files configure; nil when
// there is none. An error says what could not be read.
func MySQL(ctx context.Context, root Root) (*Database, error) {
	s := look(root)
	d := s.mysql(ctx)
	return d, s.err()
}

func (s *search) mysql(ctx context.Context) *Database {
	d := &Database{Settings: map[string]string{}, Linked: map[string]string{}}
	for _, name := range []string{"/etc/my.cnf", "/etc/mysql/my.cnf", "/usr/etc/my.cnf"} {
		for _, o := range s.myOptions(ctx, name, &d.Configs, 0) {
			base := strings.TrimRight(o.group, "-.0123456789")
			if slices.Contains([]string{"mysqld", "server", "mariadb", "mariadbd", "client-server", "galera"}, base) {
				d.Settings[o.name] = o.value
			}
		}
	}
	data := d.Settings["datadir"]
	if data == "" {
		data = "/var/lib/mysql"
	}
	info, ok := s.stat(ctx, data)
	if !ok || !info.Dir {
		return nil
	}
	d.Data, d.Owner = info.Path, info.UID
	if _, ok := s.dir(ctx, path.Join(d.Data, "mysql")); !ok {
		return nil // nothing was ever installed in it
	}
	dir := func(setting string) string {
		if d.Settings[setting] == "" {
			return ""
		}
		at, ok := s.dir(ctx, absolute(path.Join(d.Data, "x"), d.Settings[setting]))
		if !ok || inside(at, d.Data) {
			return ""
		}
		return at
	}
	d.InnoDB, d.Redo, d.Undo = dir("innodb_data_home_dir"), dir("innodb_log_group_home_dir"), dir("innodb_undo_directory")
	if name := d.Settings["log_bin"]; strings.Contains(name, "/") {
		if at, ok := s.dir(ctx, path.Dir(absolute(path.Join(d.Data, "x"), name))); ok && !inside(at, d.Data) {
			d.Binlog = at
		}
	}
	if name := d.Settings["log_error"]; path.IsAbs(name) && s.exists(ctx, name) {
		d.Log = path.Clean(name)
	}
	if d.Socket = d.Settings["socket"]; d.Socket == "" {
		d.Socket = "/run/mysqld/mysqld.sock"
		if s.exists(ctx, "/etc/redhat-release") {
			d.Socket = "/var/lib/mysql/mysql.sock"
		}
	}
	d.Port = d.Settings["port"]
	if s.exists(ctx, "/etc/mysql/debian.cnf") {
		d.Client = "/etc/mysql/debian.cnf"
	}
	d.version(ctx, s)
	for _, name := range s.list(ctx, d.Data) {
		at, ok := s.dir(ctx, path.Join(d.Data, name))
		if !ok || name[0] == '#' || name[0] == '.' || name == "lost+found" {
			continue
		}
		d.Databases = append(d.Databases, name)
		if !inside(at, d.Data) {
			d.Linked[name] = at
		}
	}
	d.Service, d.UnitFile = s.unit(ctx, "mariadb.service", "mysql.service", "mysqld.service")
	return d
}

// version tells which server last upgraded the data directory: a file of
// MariaDB and of MySQL before 8.0.16 says it in words, one of MySQL since 8.0.34
// in JSON, and Debian leaves a flag.
func (d *Database) version(ctx context.Context, s *search) {
	d.Variant = "MySQL"
	for _, name := range []string{"mariadb_upgrade_info", "mysql_upgrade_info"} {
		if text := strings.Trim(s.line(ctx, path.Join(d.Data, name)), "\x00 "); text != "" {
			version, maria, ok := strings.Cut(text, "-")
			d.Version = version
			if ok && strings.Contains(maria, "MariaDB") {
				d.Variant = "MariaDB"
			}
			return
		}
	}
	var history struct {
		Upgrades []struct {
			Version string `json:"version"`
		} `json:"upgrade_history"`
	}
	if b := s.read(ctx, path.Join(d.Data, "mysql_upgrade_history"), maxConfig); b != nil && json.Unmarshal(b, &history) == nil && len(history.Upgrades) > 0 {
		d.Version = object.Text(history.Upgrades[len(history.Upgrades)-1].Version)
		return
	}
	for _, flag := range s.glob(ctx, path.Join(d.Data, "debian-*.flag")) {
		d.Version = strings.TrimSuffix(strings.TrimPrefix(path.Base(flag), "debian-"), ".flag")
	}
	if s.exists(ctx, path.Join(d.Data, "aria_log_control")) {
		d.Variant = "MariaDB"
	}
}

// Object describes a server as a system object, without its consistency.
func (d *Database) Object() object.Object {
	o := object.Object{
		Name:    "mysql",
		Kind:    object.KindMySQL,
		Title:   object.Text(strings.TrimSpace(d.Variant + " " + d.Version)),
		Version: object.Text(d.Version),
		Service: object.Text(d.Service),
		Details: object.Details{
			"variant":   d.Variant,
			"socket":    object.Text(d.Socket),
			"owner_uid": d.Owner,
			"databases": texts(d.Databases, 1000),
		},
	}
	place(&o, "data", d.Data)
	place(&o, "innodb", d.InnoDB)
	place(&o, "wal", d.Redo)
	place(&o, "undo", d.Undo)
	place(&o, "binlog", d.Binlog)
	for _, name := range slices.Sorted(maps.Keys(d.Linked)) {
		place(&o, "database-"+name, d.Linked[name])
	}
	dirs := map[string]bool{}
	for _, name := range d.Configs {
		if dir := path.Dir(name); inside(dir, "/etc/mysql") || inside(dir, "/etc/my.cnf.d") {
			name = "/" + strings.Join(strings.Split(name, "/")[1:3], "/")
		}
		if !dirs[name] {
			dirs[name] = true
			place(&o, "config", name)
		}
	}
	place(&o, "log", d.Log)
	settings := object.Details{}
	for _, name := range []string{"innodb_flush_log_at_trx_commit", "innodb_doublewrite", "sync_binlog", "log_bin", "server_id", "innodb_flush_method", "default_storage_engine"} {
		if v, ok := d.Settings[name]; ok {
			settings[name] = object.Text(v)
		}
	}
	if len(settings) > 0 {
		o.Details["settings"] = settings
	}
	if d.UnitFile != "" {
		o.Details["unit_file"] = object.Text(d.UnitFile)
	}
	if len(d.Databases) > 1000 {
		o.Details["databases_total"] = fmt.Sprint(len(d.Databases))
	}
	return o
}
