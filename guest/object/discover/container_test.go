//go:build linux

package discover

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/guest/object"
)

// dockerHost has two containers of Docker, written by hand after what moby's
// daemon of version 24 writes: no daemon runs in the tests.
func dockerHost() map[string]string {
	const (
		db  = "1f6a2bd4c0e1a9b45b9c7ad3f1f0e2d3c4b5a69788796a5b4c3d2e1f00112233"
		web = "2f6a2bd4c0e1a9b45b9c7ad3f1f0e2d3c4b5a69788796a5b4c3d2e1f00112233"
		dir = "srv/docker/"
	)
	return map[string]string{
		"etc/docker/daemon.json": `{"data-root": "/srv/docker", "log-driver": "local"}`,
		dir + "containers/" + db + "/config.v2.json": `{"StreamConfig":{},"State":{"Running":true,"Paused":false,"Restarting":false,"OOMKilled":false,"RemovalInProgress":false,"Dead":false,"Pid":2410,"ExitCode":0,"Error":"","StartedAt":"2026-01-02T03:04:06.123456789Z","FinishedAt":"0001-01-01T00:00:00Z","Health":null},` +
			`"ID":"` + db + `","Created":"2026-01-02T03:04:05.123456789Z","Managed":false,"Path":"docker-entrypoint.sh","Args":["postgres"],` +
			`"Config":{"Hostname":"1f6a2bd4c0e1","User":"","Env":["POSTGRES_PASSWORD=hunter2"],"Cmd":["postgres"],"Image":"postgres:16","Volumes":{"/var/lib/postgresql/data":{}},"Entrypoint":["docker-entrypoint.sh"],"OnBuild":null,` +
			`"Labels":{"com.docker.compose.project":"shop","com.docker.compose.service":"db","com.docker.compose.project.working_dir":"/srv/shop","com.docker.compose.project.config_files":"/srv/shop/compose.yml"}},` +
			`"Image":"sha256:aaaa","ImageManifest":null,"NetworkSettings":{"Bridge":"","SandboxID":"5","HairpinMode":false,"Networks":{"shop_default":{"IPAMConfig":null,"Aliases":["db"],"NetworkID":"77","IPAddress":"172.18.0.2"}},"Ports":{"5432/tcp":[{"HostIp":"127.0.0.1","HostPort":"5432"}]}},` +
			`"LogPath":"","Name":"/shop-db-1","Driver":"overlay2","OS":"linux","RestartCount":0,"HasBeenStartedBefore":true,"HasBeenManuallyStopped":false,` +
			`"MountPoints":{"/var/lib/postgresql/data":{"Source":"","Destination":"/var/lib/postgresql/data","RW":true,"Name":"shop_pgdata","Driver":"local","Type":"volume","Spec":{"Type":"volume","Source":"shop_pgdata","Target":"/var/lib/postgresql/data"},"SkipMountpointCreation":false},` +
			`"/etc/localtime":{"Source":"/etc/localtime","Destination":"/etc/localtime","RW":false,"Name":"","Driver":"","Type":"bind","Propagation":"rprivate"},` +
			`"/import":{"Source":"/srv/import","Destination":"/import","RW":false,"Name":"","Driver":"","Type":"bind","Propagation":"rprivate"}},` +
			`"SecretReferences":null,"AppArmorProfile":"docker-default"}`,
		dir + "containers/" + db + "/hostconfig.json":             `{"Binds":["/srv/import:/import:ro"],"NetworkMode":"shop_default","RestartPolicy":{"Name":"unless-stopped","MaximumRetryCount":0}}`,
		dir + "image/overlay2/layerdb/mounts/" + db + "/mount-id": "bbbb",
		dir + "image/overlay2/layerdb/mounts/" + db + "/init-id":  "bbbb-init",
		dir + "overlay2/bbbb/diff/":                               "",
		dir + "overlay2/bbbb/lower":                               "l/INIT:l/BASE",
		dir + "overlay2/bbbb-init/diff/":                          "",
		dir + "overlay2/base/diff/":                               "",
		dir + "overlay2/l/INIT":                                   "→../bbbb-init/diff",
		dir + "overlay2/l/BASE":                                   "→../base/diff",
		dir + "volumes/shop_pgdata/_data/PG_VERSION":              "16\n",
		dir + "volumes/files/opts.json":                           `{"MountType":"none","MountOpts":"bind","MountDevice":"/srv/files","Quota":{"Size":0}}`,
		dir + "volumes/files/_data/":                              "",
		"srv/files/x":                                             "",
		"srv/import/":                                             "",
		"srv/shop/compose.yml":                                    "services:\n",
		"etc/localtime":                                           "TZif",
		dir + "containers/" + web + "/config.v2.json": `{"State":{"Running":false,"Pid":0},"ID":"` + web + `","Name":"/web","Config":{"Image":"nginx"},"Image":"sha256:bb","Driver":"overlayfs",` +
			`"MountPoints":{"/files":{"Source":"","Destination":"/files","RW":true,"Name":"files","Driver":"local","Type":"volume"},"/gone":{"Destination":"/gone","Name":"gone","Driver":"local","Type":"volume"}}}`,
		dir + "containers/half/hostconfig.json": `{}`,
	}
}

func TestDockerContainers(t *testing.T) {
	d := encode(t, Document(context.Background(), root(t, tree(t, dockerHost())), crash))
	if want := []string{"containers/shop-db-1", "containers/web"}; !slices.Equal(names(d), want) || len(d.Warnings) != 0 {
		t.Fatalf("objects %q, warnings %q", names(d), d.Warnings)
	}
	const dir = "/srv/docker/"
	o := find(t, d, "containers/shop-db-1")
	id := o.Details["id"].(string)
	want := map[string]string{
		"layer-0": dir + "overlay2/bbbb/diff", "layer-1": dir + "overlay2/bbbb-init/diff", "layer-2": dir + "overlay2/base/diff",
		"volume-shop_pgdata": dir + "volumes/shop_pgdata/_data", "bind-import": "/srv/import", "config": dir + "containers/" + id, "compose": "/srv/shop/compose.yml",
	}
	if got := paths(o); !reflect.DeepEqual(got, want) {
		t.Errorf("paths %v, want %v", got, want)
	}
	details := map[string]any{
		"engine": "docker", "image": "postgres:16", "restart_policy": "unless-stopped", "storage_driver": "overlay2", "program": "docker-entrypoint.sh",
		"created": "2026-01-02T03:04:05.123456789Z", "networks": []any{"shop_default"}, "ports": []any{"5432/tcp"}, "image_id": "sha256:aaaa", "id": id,
		"compose": map[string]any{"project": "shop", "service": "db", "working_dir": "/srv/shop", "config_files": "/srv/shop/compose.yml"},
		"volumes": []any{
			map[string]any{"path": "/srv/import", "destination": "/import", "read_only": true},
			map[string]any{"path": dir + "volumes/shop_pgdata/_data", "destination": "/var/lib/postgresql/data", "read_only": false, "name": "shop_pgdata", "holds": "PostgreSQL 16"},
		},
	}
	if !reflect.DeepEqual(map[string]any(o.Details), details) || o.State != "running" {
		t.Errorf("state %q, details %v, want %v", o.State, o.Details, details)
	}
	o = find(t, d, "containers/web")
	if got := paths(o); got["volume-files"] != "/srv/files" || len(got) != 2 || o.State != "stopped" {
		t.Errorf("state %q, paths %v", o.State, got)
	}
	if u, _ := o.Details["unknown"].(string); !strings.Contains(u, "containerd") {
		t.Errorf("what is unknown: %q", u)
	}
}

// podman gives a directory, and runs the real one on a store in it.
func podman(t *testing.T, driver string) (dir string, run func(args ...string) string) {
	t.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip("podman is not installed: `make deps` does it")
	}
	if os.Geteuid() != 0 {
		t.Skip("podman on a store of its own needs root")
	}
	dir, err := os.MkdirTemp("", "pod") // t.TempDir's name is too long for podman
	if err != nil {
		t.Fatal(err)
	}
	run = func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		all := append([]string{"--root", dir + "/var/lib/containers/storage", "--runroot", dir + "/run/containers/storage", "--tmpdir", dir + "/run/libpod", "--storage-driver", driver, "--cgroup-manager", "cgroupfs", "--events-backend", "none"}, args...)
		cmd := exec.CommandContext(ctx, "podman", all...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil && args[0] != "init" { // the runtime may not be allowed to here; what it is given is written before
			t.Fatalf("podman %q: %v: %s", args, err, stderr.Bytes())
		}
		return strings.TrimSpace(string(out))
	}
	t.Cleanup(func() {
		run("rm", "--all", "--force") // what it has mounted, too
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir, run
}

// boxImage makes an image of one file.
func boxImage(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "image.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	err = errors.Join(w.WriteHeader(&tar.Header{Name: "hello", Mode: 0o644, Size: 2}), func() error { _, err := w.Write([]byte("hi")); return err }(), w.Close(), f.Close())
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestPodmanContainers compares what is found with podman's own words, for a
// store that podman has made.
func TestPodmanContainers(t *testing.T) {
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) { testPodman(t, driver) })
	}
}

func testPodman(t *testing.T, driver string) {
	dir, run := podman(t, driver)
	www := filepath.Join(dir, "srv-www")
	if err := os.Mkdir(www, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "etc/containers"), 0o755); err != nil {
		t.Fatal(err)
	}
	run("import", "--quiet", boxImage(t, dir), "localhost/box:1")
	run("volume", "create", "data")
	// The paths in podman's records are this system's: so the root is "/", and
	// only its configuration is the test's.
	run("create", "--name", "web", "-v", "data:/data", "-v", www+":/www:ro", "--network", "none", "localhost/box:1", "/bin/serve", "secret argument")
	run("create", "--name", "idle", "--network", "none", "localhost/box:1", "/bin/true")
	run("init", "web")

	conf := "[storage]\ndriver = \"" + driver + "\"\ngraphroot = \"" + dir + "/var/lib/containers/storage\"\nrunroot = \"" + dir + "/run/containers/storage\"\n"
	found, err := Containers(context.Background(), overlaid{Root: root(t, "/"), files: map[string]string{"/etc/containers/storage.conf": conf, "/etc/passwd": "", "/etc/docker/daemon.json": `{"data-root": "/nowhere"}`}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web", "idle"} {
		var said []struct {
			ID          string `json:"Id"`
			Created     string
			Image       string
			ImageName   string
			StaticDir   string
			PidFile     string
			GraphDriver struct {
				Name string
				Data struct{ UpperDir, LowerDir string }
			}
			Mounts []struct {
				Name, Source, Destination string
				RW                        bool
			}
		}
		if err := json.Unmarshal([]byte(run("inspect", name)), &said); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(found, func(c Container) bool { return c.Name == name })
		if i < 0 {
			t.Fatalf("%s is not among %+v", name, found)
		}
		c, want := found[i], said[0]
		if driver == "vfs" {
			if mounted := run("mount", name); c.Rootfs != mounted || mounted == "" {
				t.Errorf("%s: its root filesystem is %s, podman says %s", name, c.Rootfs, mounted)
			}
			run("unmount", name)
		} else if layers := append([]string{want.GraphDriver.Data.UpperDir}, strings.Split(want.GraphDriver.Data.LowerDir, ":")...); !slices.Equal(c.Layers, layers) {
			t.Errorf("%s: layers %q, podman says %q", name, c.Layers, layers)
		}
		if c.ID != want.ID || c.Image != want.ImageName || c.ImageID != want.Image || c.Driver != want.GraphDriver.Name || c.Dir+"/userdata" != want.StaticDir || c.PIDFile != want.PidFile {
			t.Errorf("%s: %+v, podman says %+v", name, c, want)
		}
		if got, _ := time.Parse(time.RFC3339Nano, c.Created); got.Sub(mustTime(t, want.Created)).Abs() > 5*time.Second {
			t.Errorf("%s: created %s, podman says %s", name, c.Created, want.Created)
		}
		if name == "idle" {
			if !strings.Contains(c.Unknown, "never started") {
				t.Errorf("idle: %q", c.Unknown)
			}
			continue
		}
		var volumes, wanted []Volume
		for _, m := range want.Mounts {
			wanted = append(wanted, Volume{Name: m.Name, Path: m.Source, Destination: m.Destination, ReadOnly: !m.RW})
		}
		volumes = append(volumes, c.Volumes...)
		byPath := func(a, b Volume) int { return strings.Compare(a.Path, b.Path) }
		slices.SortFunc(volumes, byPath)
		slices.SortFunc(wanted, byPath)
		if !reflect.DeepEqual(volumes, wanted) || len(wanted) != 2 {
			t.Errorf("web: volumes %+v, podman says %+v", volumes, wanted)
		}
		o := c.Object(map[string]bool{})
		if o.Name != "containers/web" || paths(o)["volume-data"] == "" || paths(o)["rootfs"]+paths(o)["layer-0"] == "" || o.Details["program"] != "/bin/serve" {
			t.Errorf("object %+v", o)
		}
	}
}

func mustTime(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// overlaid is a Root in which some files are others.
type overlaid struct {
	Root
	files map[string]string
}

func (o overlaid) ReadFile(name string, limit int64) ([]byte, error) {
	if text, ok := o.files[name]; ok {
		return []byte(text), nil
	}
	return o.Root.ReadFile(name, limit)
}

func (o overlaid) Stat(name string) (Info, error) {
	if text, ok := o.files[name]; ok {
		return Info{Size: int64(len(text)), Path: name}, nil
	}
	return o.Root.Stat(name)
}

// TestRootlessPodman has containers of two users with the same name, on overlay.
func TestRootlessPodman(t *testing.T) {
	files := map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\nben:x:1001:1001::/home/ben:/bin/sh\n",
		"home/ben/.config/containers/storage.conf": "[storage]\ngraphroot = \"$HOME/graph\"\n",
	}
	for _, graph := range []string{"var/lib/containers/storage", "home/anna/.local/share/containers/storage", "home/ben/graph"} {
		files[graph+"/overlay-containers/containers.json"] = `[{"id":"c1","names":["web"],"image":"i1","layer":"top","metadata":"{\"image-name\":\"docker.io/library/nginx:1\",\"name\":\"web\"}","created":"2026-01-01T00:00:00Z"},{"id":"../../etc","layer":"x"},{"id":"c2","layer":"../x"}]`
		files[graph+"/overlay-layers/layers.json"] = `[{"id":"base"},{"id":"mid","parent":"base"},{"id":"top","parent":"mid"},{"id":"loop","parent":"loop"}]`
		for _, layer := range []string{"top", "mid", "base"} {
			files[graph+"/overlay/"+layer+"/diff/"] = ""
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("files of other users can be made by root only")
	}
	at := tree(t, files)
	for name, uid := range map[string]int{"anna": 1000, "ben": 1001} {
		err := filepath.WalkDir(filepath.Join(at, "home", name), func(path string, _ iofs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, uid, uid))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// A layer that is somebody else's does not become a part of ben's container.
	mid := filepath.Join(at, "home/ben/graph/overlay/mid/diff")
	if err := errors.Join(os.Remove(mid), os.MkdirAll(filepath.Join(at, "etc/ssh"), 0o755), os.Symlink("/etc/ssh", mid)); err != nil {
		t.Fatal(err)
	}
	d := encode(t, Document(context.Background(), root(t, at), crash))
	got := map[string]map[string]string{}
	for _, o := range d.Objects {
		if o.Kind == object.KindContainer {
			got[o.Name] = paths(o)
		}
	}
	want := map[string]map[string]string{}
	for name, graph := range map[string]string{"containers/web": "/var/lib/containers/storage/", "containers/web@anna": "/home/anna/.local/share/containers/storage/", "containers/web@ben": "/home/ben/graph/"} {
		want[name] = map[string]string{"layer-0": graph + "overlay/top/diff", "layer-1": graph + "overlay/mid/diff", "layer-2": graph + "overlay/base/diff", "config": graph + "overlay-containers/c1"}
	}
	want["containers/web@ben"]["layer-1"] = want["containers/web@ben"]["layer-2"]
	delete(want["containers/web@ben"], "layer-2")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("containers %v, want %v", got, want)
	}
}
