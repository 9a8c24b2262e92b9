package discover

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"cairn/guest/object"
)

const (
	maxClusters    = 100
	maxTablespaces = 100
)

// Cluster is a PostgreSQL database cluster.
type Cluster struct {
	Version string // of its files, from PG_VERSION: "15"
	Name    string // "main"
	Data    string // the data directory, without symbolic links
	WAL     string // the directory of its write-ahead log, if it is not in Data
	Owner   uint32 // user that owns Data, and that the server runs as
	// Config, HBA and Ident are its configuration files.
	Config, HBA, Ident string
	// ConfigDir is Debian's directory of the configuration; "" elsewhere.
	ConfigDir   string
	Log         string
	Tablespaces []Tablespace
	Port        int
	Sockets     []string          // directories of its unix sockets
	Settings    map[string]string // all that is set in its files; names in lower case
	Control     *Control          // nil when it could not be read
	Service     string
	UnitFile    string
}

// Tablespace is a directory that a cluster keeps tables in, beside its own.
type Tablespace struct {
	OID  string
	Path string // without symbolic links
}

// PostgreSQL finds the clusters that are configured in Debian's way, and those
// in the data directories that Debian, Red Hat, SUSE, Alpine, Arch, and the
// container images use. An error says what could not be read; what was found
// counts.
func PostgreSQL(ctx context.Context, root Root) ([]Cluster, error) {
	s := look(root)
	var found []Cluster
	add := func(c Cluster, ok bool) {
		known := func(k Cluster) bool { return k.Data == c.Data }
		if ok && len(found) < maxClusters && !slices.ContainsFunc(found, known) {
			found = append(found, c)
		}
	}
	for _, config := range s.glob(ctx, "/etc/postgresql/*/*/postgresql.conf") {
		add(s.debianCluster(ctx, config))
	}
	for _, pattern := range []string{
		"/var/lib/postgresql/*/*", "/var/lib/pgsql/*/data", "/var/lib/pgsql/data",
		"/var/lib/postgresql/data", "/var/lib/postgresql/data/pgdata", "/var/lib/postgresql/*/docker", "/var/lib/postgres/data", "/usr/local/pgsql/data",
	} {
		for _, data := range s.glob(ctx, pattern) {
			add(s.cluster(ctx, data, path.Join(data, "postgresql.conf")))
		}
	}
	return found, s.err()
}

// ClusterAt describes the cluster in a data directory: one that runs, and lies
// where nothing else leads to.
func ClusterAt(ctx context.Context, root Root, data string) (Cluster, error) {
	s := look(root)
	c, ok := s.cluster(ctx, data, path.Join(data, "postgresql.conf"))
	if !ok {
		s.miss(fmt.Errorf("%s is not a PostgreSQL data directory", data))
	}
	return c, s.err()
}

// debianCluster describes a cluster of /etc/postgresql/VERSION/NAME.
func (s *search) debianCluster(ctx context.Context, config string) (Cluster, bool) {
	if !s.exists(ctx, config) {
		return Cluster{}, false
	}
	settings := map[string]string{}
	s.pgSettings(ctx, config, settings, 0)
	dir := path.Dir(config)
	data := settings["data_directory"]
	if data == "" {
		data = path.Join("/var/lib/postgresql", path.Base(path.Dir(dir)), path.Base(dir))
	}
	c, ok := s.cluster(ctx, data, config)
	if !ok {
		s.miss(fmt.Errorf("%s: its data directory %.200q is not one that can be read", config, data))
		return Cluster{}, false
	}
	c.ConfigDir, c.Name = dir, path.Base(dir)
	c.Service, c.UnitFile = s.unit(ctx, "postgresql@"+c.Version+"-"+c.Name+".service")
	if log := fmt.Sprintf("/var/log/postgresql/postgresql-%s-%s.log", c.Version, c.Name); c.Log == "" && s.exists(ctx, log) {
		c.Log = log
	}
	return c, true
}

// cluster describes the cluster in a data directory.
func (s *search) cluster(ctx context.Context, data, config string) (Cluster, bool) {
	if !path.IsAbs(data) {
		return Cluster{}, false
	}
	info, ok := s.stat(ctx, data)
	if !ok || !info.Dir {
		return Cluster{}, false
	}
	version := s.line(ctx, path.Join(info.Path, "PG_VERSION"))
	if version == "" || len(version) > 8 || strings.Trim(version, "0123456789.") != "" {
		return Cluster{}, false
	}
	c := Cluster{Version: version, Data: info.Path, Owner: info.UID, Settings: map[string]string{}}
	if s.exists(ctx, config) {
		c.Config = config
		s.pgSettings(ctx, config, c.Settings, 0)
	}
	s.pgSettings(ctx, path.Join(c.Data, "postgresql.auto.conf"), c.Settings, 0)
	c.Name = clusterName(c.Data, version)
	c.Control = s.control(ctx, c.Data)
	c.configured(ctx, s)
	if wal, ok := s.dir(ctx, path.Join(c.Data, "pg_wal")); ok && wal != path.Join(c.Data, "pg_wal") {
		c.WAL = wal
	} else if wal, ok := s.dir(ctx, path.Join(c.Data, "pg_xlog")); ok && wal != path.Join(c.Data, "pg_xlog") { // before 10
		c.WAL = wal
	}
	tablespaces := path.Join(c.Data, "pg_tblspc")
	for _, oid := range s.list(ctx, tablespaces) {
		if _, err := strconv.ParseUint(oid, 10, 32); err != nil || len(c.Tablespaces) >= maxTablespaces {
			continue
		}
		if dir, ok := s.dir(ctx, path.Join(tablespaces, oid)); ok {
			c.Tablespaces = append(c.Tablespaces, Tablespace{OID: oid, Path: dir})
		} else {
			s.miss(fmt.Errorf("%s: the tablespace %s leads to no directory", c.Data, oid))
		}
	}
	return c, true
}

// configured fills in what the settings say.
func (c *Cluster) configured(ctx context.Context, s *search) {
	file := func(setting, standard string) string {
		name := c.Settings[setting]
		if name == "" {
			name = standard
		}
		if !path.IsAbs(name) {
			name = path.Join(c.Data, name)
		}
		if s.exists(ctx, name) {
			return name
		}
		return ""
	}
	c.HBA, c.Ident = file("hba_file", "pg_hba.conf"), file("ident_file", "pg_ident.conf")
	c.Port = 5432
	if port, err := strconv.ParseUint(c.Settings["port"], 10, 16); err == nil && port > 0 {
		c.Port = int(port)
	}
	sockets, set := c.Settings["unix_socket_directories"]
	for dir := range strings.SplitSeq(sockets, ",") {
		if dir = strings.Trim(dir, ` "`); path.IsAbs(dir) {
			c.Sockets = append(c.Sockets, path.Clean(dir))
		}
	}
	if !set {
		c.Sockets = []string{"/run/postgresql", "/tmp"} // Debian's and Red Hat's standard, and PostgreSQL's own
	}
	if c.Settings["logging_collector"] == "on" {
		c.Log = file("log_directory", "log")
	}
	major, _, _ := strings.Cut(c.Version, ".")
	if c.Service, c.UnitFile = s.unit(ctx, "postgresql-"+c.Version+".service", "postgresql-"+major+".service"); c.Service == "" && !s.exists(ctx, "/etc/postgresql-common") {
		c.Service, c.UnitFile = s.unit(ctx, "postgresql.service")
	}
}

// clusterName makes a name of a data directory: of its last part that says more
// than that it is one.
func clusterName(data, version string) string {
	for dir := data; dir != "/" && dir != "."; dir = path.Dir(dir) {
		switch base := path.Base(dir); base {
		case "data", "pgdata", "pgsql", "postgresql", "postgres", "docker", "lib", "var", "local", "usr", version:
		default:
			return base
		}
	}
	return "data"
}

// Object describes a cluster as a system object, without its consistency.
func (c Cluster) Object() object.Object {
	o := object.Object{
		Name:    object.PartOf("postgresql@" + c.Version + "-" + c.Name),
		Kind:    object.KindPostgreSQL,
		Title:   object.Text(fmt.Sprintf("PostgreSQL %s, cluster %s", c.Version, c.Name)),
		Version: c.Version,
		Service: object.Text(c.Service),
		Details: object.Details{"port": c.Port, "owner_uid": c.Owner},
	}
	place(&o, "data", c.Data)
	place(&o, "wal", c.WAL)
	for _, t := range c.Tablespaces {
		place(&o, "tablespace-"+t.OID, t.Path)
	}
	if c.ConfigDir != "" {
		place(&o, "config", c.ConfigDir)
	}
	for _, f := range []string{c.Config, c.HBA, c.Ident} {
		if f != "" && !inside(f, c.Data) && !inside(f, c.ConfigDir) {
			place(&o, "config", f)
		}
	}
	if !inside(c.Log, c.Data) {
		place(&o, "log", c.Log)
	}
	if len(c.Sockets) > 0 {
		o.Details["socket_directories"] = texts(c.Sockets, 10)
	}
	if c.UnitFile != "" {
		o.Details["unit_file"] = object.Text(c.UnitFile)
	}
	settings := object.Details{}
	for _, name := range pgMatter() {
		if v, ok := c.Settings[name]; ok {
			settings[name] = object.Text(v)
		}
	}
	if len(settings) > 0 {
		o.Details["settings"] = settings
	}
	if c.Control != nil {
		maps.Copy(o.Details, c.Control.Details())
		if o.State = "running"; strings.HasPrefix(c.Control.State, "shut down") {
			o.State = "stopped"
		}
	}
	return o
}

// pgMatter are the settings that say how far a copy of the files can be trusted,
// None of them can hold a password.
func pgMatter() []string {
	return []string{"fsync", "full_page_writes", "synchronous_commit", "wal_level", "archive_mode", "shared_preload_libraries", "max_wal_size"}
}

// inside says whether a path is a directory or below it.
func inside(name, dir string) bool {
	return dir != "" && (name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/"))
}
