//go:build linux

package discover

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	iofs "io/fs"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"cairn/guest/object"
)

var crash = object.Consistency{Level: object.Crash, Reason: "as after a power cut"}

// debian is a Debian server with everything that is looked for.
func debian() map[string]string {
	data := "var/lib/postgresql/15/main/"
	return map[string]string{
		"usr/lib/os-release": "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\nID=debian\n",
		"etc/os-release":     "→../usr/lib/os-release",
		"etc/hostname":       "db01\n",
		"etc/fstab": "# <file system> <mount point> <type> <options>\nUUID=1b2c / ext4 errors=remount-ro 0 1\n/dev/mapper/vg0-data /srv/my\\040data xfs defaults 0 2\n" +
			"LABEL=boot /boot ext4 defaults\n/dev/vda5 none swap sw\ntmpfs /tmp tmpfs size=1g\nnas:/export /home nfs4 _netdev\n/srv /mnt none bind\n/dev/disk/by-uuid/77 /x btrfs subvol=@x\nbroken\n",

		"etc/postgresql/15/main/postgresql.conf": "data_directory = '/var/lib/postgresql/15/main'\t# comment\nhba_file = '/etc/postgresql/15/main/pg_hba.conf'\nident_file='/etc/postgresql/15/main/pg_ident.conf'\n" +
			"port = 5432\nunix_socket_directories = '/var/run/postgresql, /tmp'\nfsync = on\narchive_mode=off\nINCLUDE_DIR 'conf.d'\ninclude_if_exists = 'nothing.conf'\n",
		"etc/postgresql/15/main/conf.d/local.conf":   "port 5433 # moved\nfull_page_writes = off\n",
		"etc/postgresql/15/main/conf.d/.hidden.conf": "port = 1\n",
		"etc/postgresql/15/main/pg_hba.conf":         "local all all peer\n",
		data + "PG_VERSION":                          "15\n",
		data + "postgresql.auto.conf":                "wal_level = 'logical'\n",
		data + "global/pg_control":                   string(controlFile(binary.LittleEndian, 1300)),
		data + "pg_wal":                              "→/wal/15",
		data + "pg_tblspc/16385":                     "→/srv/tables",
		data + "pg_tblspc/notanumber":                "→/etc",
		"wal/15/archive_status/":                     "",
		"srv/tables/PG_15_202209061/":                "",
		"lib":                                        "→usr/lib",
		"var/log/postgresql/postgresql-15-main.log":  "",
		"usr/lib/systemd/system/postgresql@.service": "[Unit]\n",
		"usr/lib/systemd/system/mariadb.service":     "[Unit]\n",
		"etc/systemd/system/nginx.service":           "→/dev/null",
		"dev/null":                                   "",
		"usr/lib/systemd/system/nginx.service":       "[Unit]\n",

		"etc/mysql/my.cnf":                           "→/etc/mysql/mariadb.cnf",
		"etc/mysql/mariadb.cnf":                      "[client-server]\nsocket = /run/mysqld/mysqld.sock\n!includedir /etc/mysql/mariadb.conf.d/\n!include /etc/mysql/mariadb.cnf\n",
		"etc/mysql/mariadb.conf.d/50-server.cnf":     "[mysqld]\nport=3307 # other\ninnodb-log-group-home-dir = /redo\n[mariadb-10.11]\nlog-bin=/binlog/mysql-bin\n[mysqldump]\ndatadir=/wrong\n",
		"etc/mysql/mariadb.conf.d/readme.txt":        "[mysqld]\ndatadir=/wrong\n",
		"var/lib/mysql/mysql/":                       "",
		"var/lib/mysql/shop/":                        "",
		"var/lib/mysql/#tmp/":                        "",
		"var/lib/mysql/logs":                         "→/srv/logsdb",
		"srv/logsdb/":                                "",
		"var/lib/mysql/ibdata1":                      "x",
		"var/lib/mysql/mysql_upgrade_info":           "10.11.14-MariaDB",
		"redo/":                                      "",
		"binlog/":                                    "",
		"etc/redis/redis.conf":                       "port 6379\ndir /var/lib/redis\nrequirepass \"pass word\"\ninclude /etc/redis/extra/*.conf\nlogfile /var/log/redis/redis.log\n",
		"etc/redis/extra/a.conf":                     "appendonly yes\nsave \"\"\n",
		"etc/redis/redis-cache.conf":                 "port 6380\ndir /var/lib/cache6380\nunixsocket /run/redis/cache.sock\n",
		"etc/redis/sentinel.conf":                    "port 26379\nsentinel monitor a 127.0.0.1 6379 2\ndir /var/lib/redis\n",
		"var/lib/redis/dump.rdb":                     "REDIS",
		"var/lib/cache6380/":                         "",
		"etc/nginx/nginx.conf":                       "user www-data;\nhttp {\n include conf.d/*.conf; # sites\n include /etc/nginx/sites-enabled/*;\n access_log /var/log/nginx/access.log;\n}\n",
		"etc/nginx/sites-available/shop":             "server { listen 443 ssl; server_name shop.example www.shop.example; root '/srv/shop'; ssl_certificate /etc/ssl/shop.pem; ssl_certificate_key /etc/nginx/key.pem;\n location / { try_files $uri =404; alias /srv/assets; set $a \"};\"; } }\n server { server_name _; root /; root $document; location ~ ^/x{2}$ { } }\n",
		"etc/nginx/sites-enabled/shop":               "→../sites-available/shop",
		"etc/ssl/shop.pem":                           "certificate",
		"etc/apache2/apache2.conf":                   "IncludeOptional sites-enabled/*.conf\nErrorLog ${APACHE_LOG_DIR}/error.log\nServerName main.example\n",
		"etc/apache2/envvars":                        "export APACHE_LOG_DIR=/var/log/apache2$SUFFIX\n",
		"etc/apache2/sites-enabled/000-default.conf": "Define base /var/www\n<VirtualHost *:80>\n ServerName www.example\n ServerAlias example \\\n   alias.example\n DocumentRoot ${base}/html\n</VirtualHost>\nDocumentRoot /var/www/main\n",

		"etc/passwd":                      "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/usr/sbin:/usr/sbin/nologin\nanna:x:1000:1000:Anna Müller,,,:/home/anna:/bin/bash\nben:x:1001:100::/home/ben:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\nlog:x:1002:1002::/var/log:/bin/sh\nbroken:x:y:z\n",
		"etc/shadow":                      "root:*:1::::::\nanna:$y$j9T$secret:1::::::\nben::1::::::\n",
		"etc/group":                       "users:x:100:\nsudo:x:27:anna,ben\nanna:x:1000:\n",
		"root/":                           "",
		"home/anna/.ssh/authorized_keys":  "ssh-ed25519 AAAA\n",
		"home/ben/.ssh/authorized_keys":   "",
		"var/log/redis/redis.log":         "x",
		"etc/postgresql-common/user_maps": "",
		"var/lib/dpkg/status":             "Package: nginx-core\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.22.1-9\nDescription: web\n more: text\n\nPackage: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\nPackage: redis-server\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5:7.0.15\n",
	}
}

// encode checks that a document is one, and gives it as a reader will have it.
func encode(t testing.TB, d *object.Document) *object.Document {
	t.Helper()
	b, err := object.Encode(d)
	if err != nil {
		t.Fatalf("the document cannot be encoded: %v", err)
	}
	again, err := object.Decode(b)
	if err != nil {
		t.Fatalf("the document cannot be decoded: %v", err)
	}
	return again
}

func find(t testing.TB, d *object.Document, name string) object.Object {
	t.Helper()
	for _, o := range d.Objects {
		if o.Name == name {
			return o
		}
	}
	t.Fatalf("there is no object %s in %q", name, names(d))
	return object.Object{}
}

func names(d *object.Document) []string {
	var all []string
	for _, o := range d.Objects {
		all = append(all, o.Name)
	}
	return all
}

func paths(o object.Object) map[string]string {
	all := map[string]string{}
	for _, p := range o.Paths {
		all[p.Role] = p.Path
	}
	return all
}

func TestDebianServer(t *testing.T) {
	d := encode(t, Document(context.Background(), root(t, tree(t, debian())), crash))
	if want := []string{"apache", "mysql", "nginx", "packages", "postgresql@15-main", "redis", "redis@6380", "users/anna", "users/ben", "users/log", "users/root"}; !slices.Equal(names(d), want) {
		t.Errorf("objects %q, want %q", names(d), want)
	}
	for _, o := range d.Objects {
		if !o.Derived || o.Consistency != crash {
			t.Errorf("%s: derived %v, consistency %+v", o.Name, o.Derived, o.Consistency)
		}
	}
	if len(d.Warnings) != 0 || d.Source != object.SourceImage {
		t.Errorf("source %q, warnings %q", d.Source, d.Warnings)
	}
	if d.Hostname != "db01" || d.OS.ID != "debian" || d.OS.Version != "12 (bookworm)" {
		t.Errorf("system: %q %+v", d.Hostname, d.OS)
	}
	for name, want := range map[string]map[string]string{
		"postgresql@15-main": {
			"data": "/var/lib/postgresql/15/main", "wal": "/wal/15", "tablespace-16385": "/srv/tables", "config": "/etc/postgresql/15/main",
			"log": "/var/log/postgresql/postgresql-15-main.log",
		},
		"mysql":      {"data": "/var/lib/mysql", "wal": "/redo", "binlog": "/binlog", "config": "/etc/mysql", "database-logs": "/srv/logsdb"},
		"redis":      {"data": "/var/lib/redis", "config": "/etc/redis/redis.conf", "config-2": "/etc/redis/extra/a.conf", "log": "/var/log/redis/redis.log"},
		"redis@6380": {"data": "/var/lib/cache6380", "config": "/etc/redis/redis-cache.conf"},
		"nginx":      {"config": "/etc/nginx", "site-shop.example": "/srv/shop", "site-shop.example-2": "/srv/assets", "certificate": "/etc/ssl/shop.pem", "log": "/var/log/nginx"},
		"apache":     {"config": "/etc/apache2", "site-www.example": "/var/www/html", "site-main.example": "/var/www/main", "log": "/var/log/apache2"},
		"users/anna": {"home": "/home/anna"},
		"users/root": {"home": "/root"},
		"users/log":  {}, // the system's directory is not a profile
		"packages":   {},
	} {
		if got := paths(find(t, d, name)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: paths %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]string{"postgresql@15-main": "15", "mysql": "10.11.14", "nginx": "1.22.1-9", "redis": "5:7.0.15"} {
		if o := find(t, d, name); o.Version != want {
			t.Errorf("%s: version %q, want %q", name, o.Version, want)
		}
	}
	for name, want := range map[string]string{"postgresql@15-main": "postgresql@15-main.service", "mysql": "mariadb.service", "nginx": "", "redis": ""} {
		if o := find(t, d, name); o.Service != want {
			t.Errorf("%s: service %q, want %q", name, o.Service, want)
		}
	}
	pg := find(t, d, "postgresql@15-main")
	want := map[string]any{"fsync": "on", "archive_mode": "off", "full_page_writes": "off", "wal_level": "logical"}
	if !reflect.DeepEqual(pg.Details["settings"], want) || pg.Details["port"] != json.Number("5433") || pg.Details["redo"] != "1/23450000" || pg.Details["system_identifier"] != "7642011472967116994" || pg.State != "running" {
		t.Errorf("PostgreSQL: %q %v", pg.State, pg.Details)
	}
	if o := find(t, d, "redis"); o.Details["append_only"] != true || o.Details["saves_by_itself"] != false {
		t.Errorf("Redis: %v", o.Details)
	}
	if list := find(t, d, "packages").Details["list"]; !reflect.DeepEqual(list, []any{[]any{"nginx-core", "1.22.1-9", "amd64"}, []any{"redis-server", "5:7.0.15", "amd64"}}) {
		t.Errorf("packages: %v", list)
	}
}

func TestMountsOfFstab(t *testing.T) {
	d := encode(t, Document(context.Background(), root(t, tree(t, debian())), crash))
	var got []string
	for _, m := range d.Mounts {
		if m.Frozen || m.Reason == "" {
			t.Errorf("%s: frozen %v, %q", m.Mountpoint, m.Frozen, m.Reason)
		}
		got = append(got, strings.Join([]string{m.Source, m.Mountpoint, m.Type, m.UUID, m.Label}, " "))
	}
	want := []string{
		"UUID=1b2c / ext4 1b2c ", "/dev/mapper/vg0-data /srv/my data xfs  ", "LABEL=boot /boot ext4  boot", "/dev/disk/by-uuid/77 /x btrfs 77 ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("mounts %q, want %q", got, want)
	}
}

func TestUsersOfDebian(t *testing.T) {
	d := encode(t, Document(context.Background(), root(t, tree(t, debian())), crash))
	for name, want := range map[string]string{
		"users/anna": "Anna Müller|password|true|[anna sudo]", "users/ben": "|none|false|[sudo users]", "users/root": "root|locked|false|[]",
	} {
		o := find(t, d, name)
		groups, _ := o.Details["groups"].([]any)
		slices.SortFunc(groups, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		if got := fmt.Sprintf("%s|%v|%v|%v", o.Title, o.Details["login"], o.Details["ssh_keys"], groups); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestNoSecrets: what lets somebody in is in no document.
func TestNoSecrets(t *testing.T) {
	files := debian()
	files["var/lib/docker/containers/c1/config.v2.json"] = `{"ID":"c1","Name":"/web","Config":{"Image":"i","Env":["PASSWORD=pass word"],"Labels":{"token":"pass word"}},"Args":["pass word"]}`
	b, err := object.Encode(Document(context.Background(), root(t, tree(t, files)), crash))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"pass word", "$y$", "secret", "AAAA"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("the document has %q in it", secret)
		}
	}
}

// TestRedHatServer has what Red Hat does another way.
func TestRedHatServer(t *testing.T) {
	d := encode(t, Document(context.Background(), root(t, tree(t, map[string]string{
		"etc/os-release":                               "ID=\"rhel\"\nNAME='Red Hat Enterprise Linux'\nVERSION_ID=9.4\n",
		"etc/redhat-release":                           "Red Hat",
		"var/lib/pgsql/16/data/PG_VERSION":             "16\n",
		"var/lib/pgsql/16/data/postgresql.conf":        "#port = 1\nlogging_collector = on\nlog_directory = 'log'\n",
		"var/lib/pgsql/16/data/log/":                   "",
		"var/lib/pgsql/data/PG_VERSION":                "13\n",
		"var/lib/pgsql/data/base/":                     "",
		"usr/lib/systemd/system/postgresql-16.service": "",
		"usr/lib/systemd/system/postgresql.service":    "",
		"etc/my.cnf":                                   "!includedir /etc/my.cnf.d\n",
		"etc/my.cnf.d/mysql-server.cnf":                "[mysqld]\ndatadir=/data/mysql\n",
		"data/mysql/mysql/":                            "",
		"data/mysql/mysql_upgrade_history":             `{"file_format":"1","upgrade_history":[{"date":"2024","version":"8.0.36"},{"date":"2025","version":"8.4.2"}]}`,
		"usr/lib/systemd/system/mysqld.service":        "",
		"etc/httpd/conf/httpd.conf":                    "ServerRoot \"/etc/httpd\"\nInclude conf.d/*.conf\nDocumentRoot \"/var/www/html\"\n",
		"etc/httpd/conf.d/a.conf":                      "<VirtualHost 10.0.0.1:443>\nServerName a.example\nDocumentRoot \"/srv/a b\"\nSSLCertificateFile /etc/pki/a.pem\n</VirtualHost>\n",
		"usr/lib/systemd/system/httpd.service":         "",
		"var/lib/rpm/rpmdb.sqlite":                     "SQLite",
		"etc/redis.conf":                               "dir /var/lib/redis\n",
		"var/lib/redis/":                               "",
	})), crash))
	if want := []string{"apache", "mysql", "packages", "postgresql@13-data", "postgresql@16-data", "redis"}; !slices.Equal(names(d), want) {
		t.Fatalf("objects %q, want %q; warnings %q", names(d), want, d.Warnings)
	}
	if o := find(t, d, "postgresql@16-data"); o.Service != "postgresql-16.service" || paths(o)["data"] != "/var/lib/pgsql/16/data" || o.Details["port"] != json.Number("5432") {
		t.Errorf("%+v", o)
	}
	if o := find(t, d, "postgresql@13-data"); o.Service != "postgresql.service" {
		t.Errorf("%+v", o)
	}
	if o := find(t, d, "mysql"); o.Version != "8.4.2" || o.Service != "mysqld.service" || paths(o)["data"] != "/data/mysql" || o.Details["socket"] != "/var/lib/mysql/mysql.sock" {
		t.Errorf("%+v", o)
	}
	if o := find(t, d, "apache"); o.Service != "httpd.service" || paths(o)["site-a.example"] != "/srv/a b" || paths(o)["certificate"] != "/etc/pki/a.pem" {
		t.Errorf("%+v", o)
	}
	if o := find(t, d, "packages"); o.Details["manager"] != "rpm" || o.Details["list"] != nil {
		t.Errorf("%+v", o)
	}
}

func TestEmptyGuest(t *testing.T) {
	d := encode(t, Document(context.Background(), root(t, t.TempDir()), crash))
	if len(d.Objects)+len(d.Warnings)+len(d.Mounts) != 0 {
		t.Errorf("%+v", d)
	}
}

// TestUnreadableIsSaid: an object that cannot be read is no object that is not
// there.
func TestUnreadableIsSaid(t *testing.T) {
	files := debian()
	files["etc/passwd"] = strings.Repeat("x", maxPasswd+1)
	files["var/lib/postgresql/15/main/global/pg_control"] = strings.Repeat("\x00", 8192)
	files["var/lib/postgresql/15/main/pg_tblspc/16386"] = "→/gone"
	d := encode(t, Document(context.Background(), root(t, tree(t, files)), crash))
	for _, want := range []string{"users: /etc/passwd: too large", "pg_control: not a PostgreSQL control file", "16386 leads to no directory"} {
		if !slices.ContainsFunc(d.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("no warning says %q: %q", want, d.Warnings)
		}
	}
	find(t, d, "postgresql@15-main")
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d := encode(t, Document(ctx, root(t, tree(t, debian())), crash))
	if len(d.Objects) != 0 || len(d.Warnings) == 0 {
		t.Errorf("objects %q, warnings %q", names(d), d.Warnings)
	}
}

// hostile is a Root in which every name is there, as a directory of thousands
// and as a file of what it likes.
type hostile struct {
	content string
	names   []string
	calls   int
	bytes   int64
}

func (h *hostile) ReadFile(name string, limit int64) ([]byte, error) {
	h.calls++
	if int64(len(h.content)) > limit {
		return nil, ErrTooLarge
	}
	h.bytes += int64(len(h.content))
	return []byte(h.content), nil
}

func (h *hostile) ReadDir(name string, limit int) ([]string, error) {
	h.calls++
	if strings.HasSuffix(path.Base(name), ".conf") {
		return nil, iofs.ErrNotExist
	}
	return h.names[:min(limit, len(h.names))], nil
}

func (h *hostile) Stat(name string) (Info, error) {
	h.calls++
	return Info{Dir: !strings.HasSuffix(name, ".conf"), Size: 1, Path: path.Clean(name)}, nil
}

func TestHostileTreeIsBounded(t *testing.T) {
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("%d-containers", i))
	}
	text := strings.Repeat("include /a/*\ninclude /b/*;\n!includedir /c\nserver { server_name x; root /y; }\nroot:x:1000:1000:\x01:/home/<>:\nPackage: p\nVersion: 1\n\n", 8000)
	records, _ := json.Marshal([]map[string]any{{"id": "a", "names": []string{strings.Repeat("\x01", 60000)}, "metadata": "{}"}}) // maps of strings
	for i, content := range []string{text, string(records), "", strings.Repeat("[", 900_000), "[[[\"" + strings.Repeat("\\", 100_000)} {
		h := &hostile{content: content, names: many}
		encode(t, Document(context.Background(), h, crash))
		if most := 12 * maxCalls; h.calls > most || h.bytes > 12*(maxBytes+maxStatus) {
			t.Errorf("tree %d: %d calls, %d bytes", i, h.calls, h.bytes)
		}
	}
}
