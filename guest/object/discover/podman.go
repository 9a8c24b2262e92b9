package discover

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxRootless is how many users' containers are looked for.
const maxRootless = 200

// store is where one user's Podman keeps its containers.
type store struct {
	user  string
	uid   uint32
	graph string
	run   string // where it keeps what does not outlive a boot
}

// podman finds the containers of Podman, and of whatever else uses its storage
// library. Its own database (of SQLite or BoltDB) is not read: what is only
// there, like a volume of a container that was never started, stays unknown.
// Source: containers-storage.conf(5); containers/storage's container and layer
// records, drivers overlay and vfs; the OCI runtime specification's config.json.
func (s *search) podman(ctx context.Context) []Container {
	var found []Container
	for _, st := range s.stores(ctx) {
		for _, dir := range s.list(ctx, st.graph) {
			if driver, ok := strings.CutSuffix(dir, "-containers"); ok {
				found = append(found, s.stored(ctx, st, driver, maxContainers-len(found))...)
			}
		}
	}
	return found
}

// storageConf is what is read of storage.conf.
type storageConf struct {
	Storage struct {
		GraphRoot string `toml:"graphroot"`
		RunRoot   string `toml:"runroot"`
		Rootless  string `toml:"rootless_storage_path"`
	} `toml:"storage"`
}

func (s *search) storage(ctx context.Context, name string) (conf storageConf, ok bool) {
	b := s.read(ctx, name, 64<<10)
	if b == nil {
		return conf, false
	}
	if _, err := toml.Decode(string(b), &conf); err != nil {
		s.miss(fmt.Errorf("%s: %.200w", name, err))
		return storageConf{}, false
	}
	return conf, true
}

// stores gives root's store, and those that users may have.
func (s *search) stores(ctx context.Context) []store {
	conf, ok := s.storage(ctx, "/etc/containers/storage.conf")
	if !ok {
		conf, _ = s.storage(ctx, "/usr/share/containers/storage.conf")
	}
	root := store{graph: "/var/lib/containers/storage", run: "/run/containers/storage"}
	if path.IsAbs(conf.Storage.GraphRoot) {
		root.graph = path.Clean(conf.Storage.GraphRoot)
	}
	if path.IsAbs(conf.Storage.RunRoot) {
		root.run = path.Clean(conf.Storage.RunRoot)
	}
	all := []store{root}
	for i, u := range s.passwd(ctx) {
		if i >= maxRootless {
			break
		}
		if u.UID == 0 {
			continue
		}
		expand := strings.NewReplacer("$HOME", u.Home, "$UID", strconv.Itoa(int(u.UID)), "$USER", u.Name).Replace
		st := store{
			user: u.Name, uid: u.UID, run: fmt.Sprintf("/run/user/%d/containers", u.UID),
			graph: path.Join(u.Home, ".local/share/containers/storage"),
		}
		if path.IsAbs(expand(conf.Storage.Rootless)) {
			st.graph = path.Clean(expand(conf.Storage.Rootless))
		}
		if own, ok := s.storage(ctx, path.Join(u.Home, ".config/containers/storage.conf")); ok && path.IsAbs(expand(own.Storage.GraphRoot)) {
			st.graph = path.Clean(expand(own.Storage.GraphRoot))
		}
		all = append(all, st)
	}
	return all
}

// stored gives the containers of one store and driver.
func (s *search) stored(ctx context.Context, st store, driver string, limit int) []Container {
	var records []struct {
		ID       string   `json:"id"`
		Names    []string `json:"names"`
		Image    string   `json:"image"`
		Layer    string   `json:"layer"`
		Metadata string   `json:"metadata"`
		Created  string   `json:"created"`
	}
	dir := path.Join(st.graph, driver+"-containers")
	if !s.unmarshal(ctx, path.Join(dir, "containers.json"), maxStates, &records) || len(records) == 0 {
		return nil
	}
	parents := s.layerParents(ctx, st, driver)
	var found []Container
	for _, r := range records {
		if len(found) >= limit || r.ID == "" || path.Base(r.ID) != r.ID || path.Base(r.Layer) != r.Layer {
			continue
		}
		var meta struct {
			Image string `json:"image-name"`
			Name  string `json:"name"`
		}
		_ = json.Unmarshal([]byte(r.Metadata), &meta) // of CRI-O it has other members, of others it may be anything
		c := Container{
			Engine: Podman, User: st.user, UID: st.uid, ID: r.ID, Name: meta.Name, Image: meta.Image, ImageID: r.Image,
			Created: r.Created, Driver: driver, Dir: path.Join(dir, r.ID),
			PIDFile: path.Join(st.run, driver+"-containers", r.ID, "userdata/pidfile"),
		}
		if c.Name == "" && len(r.Names) > 0 {
			c.Name = r.Names[0]
		}
		if c.Name == "" {
			c.Name = r.ID[:min(12, len(r.ID))]
		}
		s.podmanLayers(ctx, st, parents, r.Layer, &c)
		s.podmanMounts(ctx, st, &c)
		if st.user == "" || s.keepOwn(ctx, st, &c) {
			found = append(found, c)
		}
	}
	return found
}

// firstSubordinate is the first of the user numbers that users may have for
// their containers (SUB_UID_MIN of login.defs(5) is 100000, newer ones 524288).
const firstSubordinate = 65536

// keepOwn leaves of a user's container only what belongs to that user. Where its
// parts are is what the user has written down: a layer that is /etc/ssh would
// come back with the container, by root's hand.
func (s *search) keepOwn(ctx context.Context, st store, c *Container) bool {
	foreign := func(name string) bool {
		info, ok := s.stat(ctx, name)
		return ok && info.UID != st.uid && info.UID < firstSubordinate
	}
	if foreign(c.Dir) {
		return false
	}
	left := len(c.Layers) + len(c.Volumes)
	c.Layers = slices.DeleteFunc(c.Layers, foreign)
	c.Volumes = slices.DeleteFunc(c.Volumes, func(v Volume) bool { return foreign(v.Path) })
	left -= len(c.Layers) + len(c.Volumes)
	if c.Rootfs != "" && foreign(c.Rootfs) {
		c.Rootfs, left = "", left+1
	}
	if left > 0 {
		c.Unknown = fmt.Sprintf("%d of its folders do not belong to %s, and are left out", left, st.user)
	}
	return true
}

// layerParents gives the parent of each layer of a store.
func (s *search) layerParents(ctx context.Context, st store, driver string) map[string]string {
	var layers []struct {
		ID     string `json:"id"`
		Parent string `json:"parent"`
	}
	dir := path.Join(st.graph, driver+"-layers")
	s.unmarshal(ctx, path.Join(dir, "layers.json"), maxStates, &layers)
	parents := map[string]string{}
	for _, l := range layers {
		parents[l.ID] = l.Parent
	}
	return parents
}

func (s *search) podmanLayers(ctx context.Context, st store, parents map[string]string, layer string, c *Container) {
	switch c.Driver {
	case "overlay":
		for ; layer != "" && path.Base(layer) == layer && len(c.Layers) < maxLayers; layer = parents[layer] {
			c.layer(ctx, s, path.Join(st.graph, "overlay", layer, "diff"))
		}
	case "vfs":
		c.Rootfs, _ = s.dir(ctx, path.Join(st.graph, "vfs/dir", layer))
	case "btrfs":
		c.Rootfs, _ = s.dir(ctx, path.Join(st.graph, "btrfs/subvolumes", layer))
	default:
		c.Unknown = "where its root filesystem is: the storage driver is " + c.Driver
	}
}

// podmanMounts reads what the runtime was given at the container's last start.
func (s *search) podmanMounts(ctx context.Context, st store, c *Container) {
	var config struct {
		Process struct {
			Args []string `json:"args"`
		} `json:"process"`
		Mounts []struct {
			Destination string   `json:"destination"`
			Type        string   `json:"type"`
			Source      string   `json:"source"`
			Options     []string `json:"options"`
		} `json:"mounts"`
	}
	if !s.unmarshal(ctx, path.Join(c.Dir, "userdata/config.json"), maxConfig, &config) {
		if c.Unknown == "" {
			c.Unknown = "its volumes: it was never started"
		}
		return
	}
	if len(config.Process.Args) > 0 {
		c.Program = config.Process.Args[0]
	}
	volumes := path.Join(st.graph, "volumes")
	for _, m := range config.Mounts {
		v := Volume{Path: m.Source, Destination: m.Destination}
		for _, o := range m.Options {
			v.ReadOnly = v.ReadOnly || o == "ro"
		}
		if m.Type != "bind" || inside(m.Source, st.run) || inside(m.Source, path.Join(st.graph, c.Driver+"-containers")) || !path.IsAbs(m.Source) {
			continue
		}
		if inside(m.Source, volumes) {
			v.Name, _, _ = strings.Cut(strings.TrimPrefix(m.Source, volumes+"/"), "/")
		}
		s.volume(ctx, c, v)
	}
}
