package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	sysobject "cairn/guest/object"
	"cairn/index/restorepoint"
)

// cluster is a PostgreSQL cluster that lies behind a link of the guest.
func cluster() sysobject.Object {
	return sysobject.Object{Name: "postgresql@15-main", Kind: sysobject.KindPostgreSQL, Version: "15.4", State: "running",
		Consistency: sysobject.Consistency{Level: sysobject.Application, Reason: "checkpointed <12 ms> before the freeze"},
		Paths: []sysobject.Path{
			{Role: "data", Path: "/var/lib/postgresql/15/main", Size: 7},
			{Role: "config", Path: "/etc/postgresql/15/main/postgresql.conf"},
			{Role: "log", Path: "/var/log/postgresql"},
		},
		Steps:   []sysobject.Step{{Phase: "pre", What: "CHECKPOINT", TookMS: 12}},
		Details: sysobject.Details{"system_identifier": uint64(7312345678901234567)}}
}

// described gives a document of some objects, in its bytes.
func described(objects ...sysobject.Object) ([]byte, error) {
	return sysobject.Encode(&sysobject.Document{Version: sysobject.Version, Source: sysobject.SourceAgent, Taken: noon.Add(-time.Second), Hostname: "web01", Objects: objects})
}

// tell puts a document into a world's points, whose volumes are one root
// filesystem; the command "scans" gives how often they were looked for.
func (w *world) tell(root *treetest.FS, raw []byte, err error) (*world, error) {
	w.points = []restorepoint.Summary{{ID: "0001", VM: "web01", Time: noon}}
	w.manifest = &restorepoint.Manifest{Consistency: restorepoint.Consistency{Level: "application", Reason: "told"}}
	if raw != nil {
		w.manifest.Guest = &restorepoint.Guest{Metadata: raw, MetadataDigest: sysobject.Digest(raw)}
	}
	var scans atomic.Int64
	set := treetest.Volumes{{Volume: tree.Volume{Name: "vda", UUID: "aaaa"}, Reader: root}}
	w.openTree = func(_ context.Context, m *restorepoint.Manifest, _ func(string) (restorepoint.Image, error)) (*tree.Tree, error) {
		return tree.New(m, func(ctx context.Context) (tree.Volumes, error) {
			scans.Add(1)
			return set.Scan(ctx)
		}), nil
	}
	w.do = func(*Server, *world, string) string { return fmt.Sprint(scans.Load()) }
	return w, err
}

func appsRoot() *treetest.FS {
	root := treetest.New("ext4", "root", "aaaa")
	root.File("/srv/pg/15/main/PG_VERSION", "15\n")
	root.Symlink("/var/lib/postgresql", "/srv/pg")
	root.File("/etc/postgresql/15/main/postgresql.conf", "fsync = on\n")
	root.File("/etc/passwd", "guest's passwd\n")
	root.File("/home/anna/letter", "dear\n")
	root.Symlink("/home/bert", "../../../../../../../../../../etc")
	root.File("/var/lib/docker/volumes/web/_data/x", "")
	root.Symlink("/loop", "loop")
	root.File("/bad/x", "").Err = errors.New("the store does not answer")
	return root
}

func appsWorld(string) (*world, error) {
	b, err := described(cluster(),
		sysobject.Object{Name: "containers/web", Kind: sysobject.KindContainer, Consistency: sysobject.Consistency{Level: sysobject.Filesystem},
			Paths: []sysobject.Path{{Role: "volume-web", Path: "/var/lib/docker/volumes/web/_data"}}},
		sysobject.Object{Name: "users/anna", Kind: sysobject.KindUser, Consistency: sysobject.Consistency{Level: sysobject.Filesystem}, Paths: []sysobject.Path{{Role: "home", Path: "/home/anna"}}},
		sysobject.Object{Name: "users/bert", Kind: sysobject.KindUser, Consistency: sysobject.Consistency{Level: sysobject.Filesystem}, Paths: []sysobject.Path{{Role: "home", Path: "/home/bert"}, {Role: "all", Path: "/"}}},
	)
	return new(world).tell(appsRoot(), b, err)
}

func readlink(t *testing.T, name string) string {
	t.Helper()
	target, err := os.Readlink(name)
	if err != nil {
		t.Error(err)
	}
	return target
}

func readJSON(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, b)
	}
}

func TestAppsOfAPoint(t *testing.T) {
	for _, env := range [][]string{nil, {envRaw + "=1"}} {
		m := mountWorld(t, "apps", env...)
		apps := m.path("web01/latest/apps")
		for dir, want := range map[string]string{
			"": "containers document.json postgresql@15-main users", "containers": "web", "users": "anna bert",
			"postgresql@15-main": "config data object.json", "containers/web": "object.json volume-web", "users/anna": "home object.json", "users/bert": "all home object.json",
		} {
			if got := names(t, filepath.Join(apps, dir)); got != want {
				t.Errorf("apps/%s holds %q, want %q", dir, got, want)
			}
		}
		for link, want := range map[string]string{
			"postgresql@15-main/data": "../../fs/srv/pg/15/main", "postgresql@15-main/config": "../../fs/etc/postgresql/15/main/postgresql.conf",
			"containers/web/volume-web": "../../../fs/var/lib/docker/volumes/web/_data", "users/anna/home": "../../../fs/home/anna",
			"users/bert/home": "../../../fs/etc", "users/bert/all": "../../../fs",
		} {
			name := filepath.Join(apps, link)
			if got := readlink(t, name); got != want {
				t.Errorf("apps/%s leads to %q, want %q", link, got, want)
			}
			if st, err := os.Lstat(name); err != nil || st.Size() != int64(len(want)) {
				t.Errorf("size of apps/%s: %v, %v", link, st, err)
			}
			if real, err := filepath.EvalSymlinks(name); env == nil && (err != nil || !strings.HasPrefix(real+"/", m.path("web01/latest/fs")+"/")) {
				t.Errorf("apps/%s ends at %q, %v", link, real, err)
			}
		}
		raw := make([]byte, 100)
		if n, err := unix.Lgetxattr(apps+"/postgresql@15-main/data", linkAttributeAlt, raw); err != nil || string(raw[:n]) != "/var/lib/postgresql/15/main" {
			t.Errorf("the guest's path: %q, %v", raw[:max(n, 0)], err)
		}
		_, err := os.ReadFile(apps + "/postgresql@15-main/data/PG_VERSION")
		if env == nil && err != nil || env != nil && !errors.Is(err, unix.ELOOP) {
			t.Errorf("reading through the link: %v", err)
		}
		w, err := appsWorld("")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(apps + "/document.json"); err != nil || string(b) != string(w.manifest.Guest.Metadata) {
			t.Errorf("document.json: %s, %v", b, err)
		}
	}
}

func TestObjectIsDescribed(t *testing.T) {
	m := mountWorld(t, "apps")
	var o aboutObject
	readJSON(t, m.path("web01/latest/apps/postgresql@15-main/object.json"), &o)
	if o.Name != "postgresql@15-main" || o.Derived || o.Source != sysobject.SourceAgent || !o.Taken.Equal(noon.Add(-time.Second)) || o.Point.ID != "0001" || o.Point.VM != "web01" ||
		!o.Point.Time.Equal(noon) || o.Point.Consistency.Level != "application" || o.Hostname != "web01" || o.Steps[0].What != "CHECKPOINT" ||
		o.Consistency.Reason != "checkpointed <12 ms> before the freeze" || o.Details["system_identifier"] != json.Number("7312345678901234567") {
		t.Errorf("object.json: %+v", o)
	}
	want := []aboutPath{
		{Path: sysobject.Path{Role: "data", Path: "/var/lib/postgresql/15/main", Size: 7}, Link: "data", InPoint: "fs/srv/pg/15/main"},
		{Path: sysobject.Path{Role: "config", Path: "/etc/postgresql/15/main/postgresql.conf"}, Link: "config", InPoint: "fs/etc/postgresql/15/main/postgresql.conf"},
		{Path: sysobject.Path{Role: "log", Path: "/var/log/postgresql"}, Missing: "there is no such path in the point"},
	}
	for i := range want {
		if i >= len(o.Paths) || o.Paths[i] != want[i] {
			t.Errorf("paths %+v, want %+v", o.Paths, want)
			break
		}
	}
	b, err := os.ReadFile(m.path("web01/latest/apps/postgresql@15-main/object.json"))
	if err != nil || !strings.Contains(string(b), "\n  \"name\": \"postgresql@15-main\"") || !strings.Contains(string(b), "<12 ms>") {
		t.Errorf("not for people to read: %s", b)
	}
	var p about
	readJSON(t, m.path("web01/latest/point.json"), &p)
	if p.Apps == nil || p.Apps.Objects != 4 || p.Apps.Source != sysobject.SourceAgent || p.Apps.Derived || len(p.Problems) != 0 {
		t.Errorf("point.json: %+v, problems %v", p.Apps, p.Problems)
	}
}

// Listing what there is opens the manifest, and no disk.
func TestListingAppsScansNoDisk(t *testing.T) {
	m := mountWorld(t, "apps")
	for _, dir := range []string{"apps", "apps/containers", "apps/users"} {
		list, err := os.ReadDir(m.path("web01/latest", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if _, err := e.Info(); err != nil {
				t.Error(err)
			}
		}
	}
	if got := m.ask(t, "scans"); got != "0" {
		t.Errorf("the disks were scanned %s times", got)
	}
	names(t, m.path("web01/latest/apps/users/anna"))
	if got := m.ask(t, "scans"); got != "1" {
		t.Errorf("after looking into an object the disks were scanned %s times", got)
	}
}

// hostileWorld is a document with as much in it as there may be, and with
// names that want to be the same.
func hostileWorld(string) (*world, error) {
	crash := sysobject.Consistency{Level: sysobject.Crash}
	long := strings.Repeat("ü", sysobject.MaxName/2)
	objects := []sysobject.Object{
		{Name: "containers", Consistency: crash, Paths: []sysobject.Path{{Role: "web", Path: "/etc"}}},
		{Name: "containers-2", Consistency: crash},
		{Name: "containers/web", Consistency: crash},
		{Name: "document.json", Consistency: crash},
		{Name: "document.json/x", Consistency: crash},
		{Name: long, Consistency: crash},
		{Name: long + "/x", Consistency: crash},
		{Name: "%2E%2E", Consistency: crash},
		{Name: "%", Consistency: crash},
		{Name: "roles", Consistency: crash, Paths: []sysobject.Path{
			{Role: "object.json", Path: "/etc"}, {Role: "object.json-2", Path: "/home"}, {Role: "leap", Path: "/home/bert/passwd"},
			{Role: "loop", Path: "/loop/x"}, {Role: "below-a-file", Path: "/etc/passwd/x"}, {Role: "long", Path: "/" + strings.Repeat("x/", 2000) + "x"},
		}},
		{Name: "unanswered", Consistency: crash, Paths: []sysobject.Path{{Role: "bad", Path: "/bad/x/y"}}},
	}
	for i := len(objects); i < sysobject.MaxObjects; i++ {
		objects = append(objects, sysobject.Object{Name: fmt.Sprintf("users/%05d", i), Consistency: crash, Paths: []sysobject.Path{{Role: "home", Path: "/home/anna"}}})
	}
	b, err := described(objects...)
	return new(world).tell(appsRoot(), b, err)
}

func TestHostileDocumentIsShown(t *testing.T) {
	m := mountWorld(t, "hostile")
	apps := m.path("web01/latest/apps")
	long := strings.Repeat("ü", sysobject.MaxName/2)
	want := []string{"%", "%2E%2E", "containers", "containers-2", "containers-3", "document.json", "document.json-2", "document.json-3",
		"roles", "unanswered", "users", long, strings.Repeat("ü", sysobject.MaxName/2-1) + "-2"}
	if got := names(t, apps); got != sortedJoin(want) {
		t.Errorf("apps holds %q", got)
	}
	entries, err := os.ReadDir(apps)
	if err != nil {
		t.Fatal(err)
	}
	of := map[string]string{} // the objects' own names
	for _, e := range entries {
		if st, err := os.Lstat(filepath.Join(apps, e.Name())); err != nil || st.IsDir() != e.IsDir() {
			t.Errorf("%q: %v, %v", e.Name(), st, err)
		}
		var o aboutObject
		if b, err := os.ReadFile(filepath.Join(apps, e.Name(), "object.json")); err == nil {
			if err := json.Unmarshal(b, &o); err != nil {
				t.Fatal(err)
			}
			of[e.Name()] = o.Name
		}
	}
	for shown, name := range map[string]string{"containers-2": "containers-2", "containers-3": "containers", "document.json-3": "document.json", "containers": "", "%2E%2E": "%2E%2E"} {
		if of[shown] != name {
			t.Errorf("%s is the object %q, want %q", shown, of[shown], name)
		}
	}
	if got := names(t, apps+"/roles"); got != "leap object.json object.json-2 object.json-3" {
		t.Errorf("roles holds %q", got)
	}
	if got := readlink(t, apps+"/roles/object.json-3"); got != "../../fs/etc" {
		t.Errorf("the second object.json leads to %q", got)
	}
	if b, err := os.ReadFile(apps + "/roles/leap"); err != nil || string(b) != "guest's passwd\n" {
		t.Errorf("leap: %q, %v", b, err)
	}
	var o aboutObject
	readJSON(t, apps+"/roles/object.json", &o)
	for i, want := range []string{"", "", "", "too many levels", "no such path", "no such path"} {
		if got := o.Paths[i].Missing; (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s is missing because %q, want %q", o.Paths[i].Role, got, want)
		}
	}
	if _, err := os.ReadDir(apps + "/unanswered"); !errors.Is(err, unix.EIO) {
		t.Errorf("a path that cannot be looked for now: %v, want EIO", err)
	}
	started := time.Now()
	users, err := os.ReadDir(apps + "/users")
	if err != nil || len(users) != sysobject.MaxObjects-11 {
		t.Fatalf("%d users, %v", len(users), err)
	}
	for _, e := range users {
		if _, err := os.Stat(filepath.Join(apps, "users", e.Name(), "home", "letter")); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d objects listed and looked into: %v", len(users), time.Since(started))
}

func damagedWorld(string) (*world, error) {
	w, err := appsWorld("")
	w.manifest.Guest.MetadataDigest = sysobject.Digest(nil)
	return w, err
}

func TestDamagedMetadataGivesEIO(t *testing.T) {
	m := mountWorld(t, "damaged")
	if got := names(t, m.path("web01/latest")); !strings.HasPrefix(got, "apps ") {
		t.Errorf("the point holds %q", got)
	}
	apps := m.path("web01/latest/apps")
	if st, err := os.Stat(apps); err != nil || !st.IsDir() {
		t.Errorf("%v, %v", st, err)
	}
	for _, name := range []string{"", "document.json", "users/anna"} {
		if _, err := os.ReadDir(filepath.Join(apps, name)); !errors.Is(err, unix.EIO) {
			t.Errorf("apps/%s: %v, want EIO", name, err)
		}
	}
	var p about
	readJSON(t, m.path("web01/latest/point.json"), &p)
	if len(p.Problems) != 1 || p.Problems[0].Where != "apps" || !strings.Contains(p.Problems[0].Reason, "digest") || p.Apps != nil {
		t.Errorf("point.json: problems %v", p.Problems)
	}
	if b, err := os.ReadFile(m.path("web01/latest/fs/etc/passwd")); err != nil || string(b) != "guest's passwd\n" {
		t.Errorf("the files: %q, %v", b, err)
	}
}

// Points whose metadata is large are given up before many are open.
func TestOpenPointsMetadataIsBounded(t *testing.T) {
	s := newServer(nil, Options{})
	var points []*point
	for range 10 {
		p := newPoint(s, restorepoint.Summary{})
		points = append(points, p)
		s.keepOpen(p, &opened{manifest: &restorepoint.Manifest{Guest: &restorepoint.Guest{Metadata: make([]byte, maxMetadata/3)}}})
	}
	for i, p := range points {
		if open := p.opened.Load() != nil; open != (i >= 7) {
			t.Errorf("point %d of 10 is open: %v", i, open)
		}
	}
	s.keepOpen(points[0], &opened{manifest: &restorepoint.Manifest{Guest: &restorepoint.Guest{Metadata: make([]byte, 2*maxMetadata)}}})
	if len(s.open) != 1 || points[0].opened.Load() == nil {
		t.Errorf("%d points are open after a very large one", len(s.open))
	}
}

// What cp copies out of an application's folder is the guest's own directory,
// also when the guest reaches it over a link. Real filesystem, real mount.
func TestApplicationsDataIsCopied(t *testing.T) {
	needFUSE(t)
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs mke2fs")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	for name, text := range map[string]string{
		"srv/ssd/pg/15/main/PG_VERSION": "15\n", "srv/ssd/pg/15/main/base/1/1259": strings.Repeat("tuple", 20000), "srv/ssd/pg/15/main/pg_wal/000000010000000000000001": "wal",
		"etc/postgresql/15/main/postgresql.conf": "fsync = on\n", "etc/passwd": "guest's\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(source, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"var": "/srv/ssd", "srv/ssd/lib": ".", "srv/ssd/postgresql": "../../srv/ssd/pg", "srv/ssd/pg/15/main/pg_tblspc": "/../../../../../etc"} {
		if err := os.Symlink(target, filepath.Join(source, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(source, "srv/ssd/pg/15/main"), 110, 118); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "vda.img")
	run(t, "truncate", "-s", "32M", image)
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", source, image)
	b, err := described(cluster())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image+".json", b, 0o600); err != nil {
		t.Fatal(err)
	}
	m := mountWorld(t, "image", envSetting+"="+image)
	dest := filepath.Join(dir, "dest")
	if err := os.Mkdir(dest, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "-a", m.path("web01/latest/apps/postgresql@15-main/data")+"/.", dest)
	run(t, "diff", "-r", "--no-dereference", "--exclude", "pg_tblspc", filepath.Join(source, "srv/ssd/pg/15/main"), dest)
	if got := readlink(t, dest+"/pg_tblspc"); got != "../../../../../etc" {
		t.Errorf("a link in the data leads to %q: it is to be contained in fs/", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dest, &st); err != nil || st.Uid != 110 || st.Gid != 118 {
		t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
	if got := readlink(t, m.path("web01/latest/apps/postgresql@15-main/data")); got != "../../fs/srv/ssd/pg/15/main" {
		t.Errorf("data leads to %q", got)
	}
	if b, err := os.ReadFile(m.path("web01/latest/apps/postgresql@15-main/config")); err != nil || string(b) != "fsync = on\n" {
		t.Errorf("config: %q, %v", b, err)
	}
}
