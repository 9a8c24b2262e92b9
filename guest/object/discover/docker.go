package discover

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"
)

// dockerConfig is what is read of a container's config.v2.json: moby's
// container.Container.
type dockerConfig struct {
	ID      string
	Name    string // "/web"
	Created string
	Path    string
	Image   string // "sha256:…"
	Driver  string
	State   struct {
		Running bool
		Pid     int
	}
	Config struct {
		Image  string
		Labels map[string]string
	}
	NetworkSettings struct {
		Networks map[string]any
		Ports    map[string]any
	}
	MountPoints map[string]struct {
		Source, Destination, Name, Type, Driver string
		RW                                      bool
	}
}

// docker finds Docker's containers. Source: moby's daemon/container (what is
// kept of a container), daemon/graphdriver/overlay2, layer and volume/local.
func (s *search) docker(ctx context.Context) []Container {
	var daemon struct {
		DataRoot string `json:"data-root"`
		Graph    string `json:"graph"` // before 17.05
	}
	data := "/var/lib/docker"
	if s.unmarshal(ctx, "/etc/docker/daemon.json", maxConfig, &daemon) {
		for _, dir := range []string{daemon.Graph, daemon.DataRoot} {
			if path.IsAbs(dir) {
				data = path.Clean(dir)
			}
		}
	}
	data, ok := s.dir(ctx, data)
	if !ok {
		return nil
	}
	var found []Container
	for _, id := range s.list(ctx, path.Join(data, "containers")) {
		if len(found) >= maxContainers {
			break
		}
		if c, ok := s.dockerContainer(ctx, data, id); ok {
			found = append(found, c)
		}
	}
	return found
}

func (s *search) dockerContainer(ctx context.Context, data, id string) (Container, bool) {
	dir := path.Join(data, "containers", id)
	var config dockerConfig
	if !s.unmarshal(ctx, path.Join(dir, "config.v2.json"), maxConfig, &config) || config.ID != id {
		return Container{}, false
	}
	c := Container{
		Engine: Docker, ID: id, Dir: dir, Driver: config.Driver,
		Name:  strings.TrimPrefix(config.Name, "/"),
		Image: config.Config.Image, ImageID: config.Image,
		Created: config.Created, Program: config.Path,
		Networks: slices.Sorted(maps.Keys(config.NetworkSettings.Networks)),
		Ports:    slices.Sorted(maps.Keys(config.NetworkSettings.Ports)),
		Compose:  compose(config.Config.Labels),
	}
	if config.State.Running {
		c.PID = config.State.Pid
	}
	var host struct {
		RestartPolicy struct{ Name string }
	}
	if s.unmarshal(ctx, path.Join(dir, "hostconfig.json"), maxConfig, &host) {
		c.Restart = host.RestartPolicy.Name
	}
	for _, destination := range slices.Sorted(maps.Keys(config.MountPoints)) {
		m := config.MountPoints[destination]
		v := Volume{Name: m.Name, Path: m.Source, Destination: destination, ReadOnly: !m.RW}
		if m.Type == "tmpfs" {
			continue
		}
		if m.Name != "" && (m.Driver == "local" || m.Driver == "") {
			v.Path = s.dockerVolume(ctx, path.Join(data, "volumes", path.Base(path.Clean("/"+m.Name))))
		}
		s.volume(ctx, &c, v)
	}
	s.dockerLayers(ctx, data, &c)
	return c, true
}

// dockerVolume gives the directory of a volume of the local driver: it may be
// another one that is mounted there when a container runs.
func (s *search) dockerVolume(ctx context.Context, dir string) string {
	var options struct {
		MountOpts   string
		MountDevice string
	}
	if s.unmarshal(ctx, path.Join(dir, "opts.json"), maxConfig, &options) && path.IsAbs(options.MountDevice) {
		for o := range strings.SplitSeq(options.MountOpts, ",") {
			if o == "bind" || o == "rbind" {
				return path.Clean(options.MountDevice)
			}
		}
	}
	return path.Join(dir, "_data")
}

// dockerLayers finds what a container's root filesystem is made of.
func (s *search) dockerLayers(ctx context.Context, data string, c *Container) {
	mount := s.line(ctx, path.Join(data, "image", path.Base(path.Clean("/"+c.Driver)), "layerdb/mounts", c.ID, "mount-id"))
	if mount == "" || strings.Contains(mount, "/") {
		c.Unknown = "where its root filesystem is: it is kept by containerd, or by the storage driver " + c.Driver
		return
	}
	base := path.Join(data, c.Driver)
	switch c.Driver {
	case "overlay2", "fuse-overlayfs":
		dir := path.Join(base, mount)
		c.layer(ctx, s, path.Join(dir, "diff"))
		for link := range strings.SplitSeq(strings.TrimSpace(string(s.read(ctx, path.Join(dir, "lower"), maxConfig))), ":") {
			if link != "" {
				c.layer(ctx, s, path.Join(base, link)) // "l/ABC…", a link to ../ID/diff
			}
		}
	case "vfs":
		c.Rootfs, _ = s.dir(ctx, path.Join(base, "dir", mount))
	case "btrfs":
		c.Rootfs, _ = s.dir(ctx, path.Join(base, "subvolumes", mount))
	default:
		c.Unknown = "where its root filesystem is: the storage driver is " + c.Driver
	}
}

// layer adds a layer, if it is there.
func (c *Container) layer(ctx context.Context, s *search, dir string) {
	if len(c.Layers) >= maxLayers {
		return
	}
	if at, ok := s.dir(ctx, dir); ok {
		c.Layers = append(c.Layers, at)
	} else {
		c.Unknown = "not all layers of its root filesystem are there"
	}
}

// compose gives what Docker Compose, or Podman's, has noted in a container's
// labels. Other labels may hold anything.
func compose(labels map[string]string) map[string]string {
	found := map[string]string{}
	for label, key := range map[string]string{
		"com.docker.compose.project":              "project",
		"com.docker.compose.service":              "service",
		"com.docker.compose.project.working_dir":  "working_dir",
		"com.docker.compose.project.config_files": "config_files",
		"io.podman.compose.project":               "project",
	} {
		if v := labels[label]; v != "" {
			found[key] = v
		}
	}
	return found
}
