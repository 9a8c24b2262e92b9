package discover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"cairn/guest/object"
)

const (
	maxContainers = 1000
	maxStates     = 8 << 20 // bytes of a file that describes many containers
	maxLayers     = 150
	maxVolumes    = 100
)

// Engines of containers.
const (
	Docker = "docker"
	Podman = "podman"
)

// Container is a container of Docker or Podman, running or not.
type Container struct {
	Engine  string // Docker or Podman
	User    string // whose it is, when it is not root's
	UID     uint32 // of that user
	ID      string
	Name    string
	Image   string // its name: "postgres:16"
	ImageID string
	Created string
	Program string // that it starts; without arguments, which may hold secrets
	Dir     string // of what the engine notes about it
	Driver  string // of its storage
	// Layers are the directories that its root filesystem is made of, the one
	// that it writes to first. Rootfs is the whole of it, where the driver keeps
	// it in one directory.
	Layers   []string
	Rootfs   string
	Volumes  []Volume
	Networks []string
	Ports    []string // "80/tcp"
	Compose  map[string]string
	Restart  string
	// PID is of its first process, as last noted; 0 when it did not run. PIDFile
	// is where Podman notes it.
	PID     int
	PIDFile string
	// Unknown says what could not be found out, and why.
	Unknown string
}

// Volume is a directory of the guest that a container sees.
type Volume struct {
	Name        string // "" for a bind mount
	Path        string // in the guest, without symbolic links
	Destination string // in the container
	ReadOnly    bool
	Holds       string // what its files look like: "PostgreSQL 16"
}

// Containers finds the containers of Docker, of root's Podman, and of that of
// other users. An error says what could not be read; what was found counts.
func Containers(ctx context.Context, root Root) ([]Container, error) {
	s := look(root)
	found := append(s.docker(ctx), s.podman(ctx)...)
	for i := range found {
		for j := range found[i].Volumes {
			v := &found[i].Volumes[j]
			v.Holds = s.holds(ctx, v.Path)
		}
	}
	return found, s.err()
}

// unmarshal reads a JSON file; false when it is not there or is none.
func (s *search) unmarshal(ctx context.Context, name string, limit int64, into any) bool {
	b := s.read(ctx, name, limit)
	if b == nil {
		return false
	}
	if err := json.Unmarshal(b, into); err != nil {
		var kind *json.UnmarshalTypeError
		if !errors.As(err, &kind) {
			s.miss(fmt.Errorf("%s: %w", name, err))
			return false
		}
	}
	return true
}

// holds says what application's data a directory has in it.
func (s *search) holds(ctx context.Context, dir string) string {
	for _, data := range []string{dir, path.Join(dir, "data"), path.Join(dir, "pgdata")} {
		if v := s.line(ctx, path.Join(data, "PG_VERSION")); v != "" && len(v) < 8 {
			return "PostgreSQL " + v
		}
	}
	switch {
	case s.exists(ctx, path.Join(dir, "ibdata1")):
		return "MySQL or MariaDB"
	case s.exists(ctx, path.Join(dir, "appendonlydir")), s.exists(ctx, path.Join(dir, "dump.rdb")):
		return "Redis"
	}
	return ""
}

// volume adds a directory that a container sees, if it is one.
func (s *search) volume(ctx context.Context, c *Container, v Volume) {
	if len(c.Volumes) >= maxVolumes || v.Path == "" {
		return
	}
	at, ok := s.dir(ctx, v.Path)
	if !ok && v.Name == "" {
		return // a file or a socket: of the system
	}
	if !ok {
		c.Unknown = fmt.Sprintf("the volume %.100q is not at %.200q", v.Name, v.Path)
		return
	}
	v.Path = at
	c.Volumes = append(c.Volumes, v)
}

// Object describes a container as a system object, without its consistency.
// taken are the names that are used already.
func (c Container) Object(taken map[string]bool) object.Object {
	owner := c.Engine
	if c.User != "" {
		owner = c.User
	}
	o := object.Object{
		Name:  free(taken, "containers/"+object.PartOf(c.Name), owner),
		Kind:  object.KindContainer,
		Title: object.Text(fmt.Sprintf("%s container %s of %s", map[string]string{Docker: "Docker", Podman: "Podman"}[c.Engine], c.Name, c.Image)),
		Details: object.Details{
			"engine": c.Engine, "id": object.Text(c.ID), "image": object.Text(c.Image), "image_id": object.Text(c.ImageID), "storage_driver": object.Text(c.Driver),
		},
	}
	if c.Engine == Docker {
		o.State = "stopped"
	}
	if c.PID != 0 {
		o.State = "running"
	}
	for k, v := range map[string]string{"user": c.User, "created": c.Created, "program": c.Program, "restart_policy": c.Restart, "unknown": c.Unknown} {
		if v != "" {
			o.Details[k] = object.Text(v)
		}
	}
	place(&o, "rootfs", c.Rootfs)
	for i, layer := range c.Layers {
		place(&o, fmt.Sprintf("layer-%d", i), layer)
	}
	var volumes []object.Details
	for _, v := range c.Volumes {
		d := object.Details{"path": object.Text(v.Path), "destination": object.Text(v.Destination), "read_only": v.ReadOnly}
		if v.Name != "" {
			d["name"] = object.Text(v.Name)
		}
		if v.Holds != "" {
			d["holds"] = v.Holds
		}
		volumes = append(volumes, d)
		switch {
		case v.Name != "":
			place(&o, "volume-"+v.Name, v.Path)
		case !systemic(v.Path):
			place(&o, "bind-"+strings.Trim(v.Destination, "/"), v.Path)
		}
	}
	if len(volumes) > 0 {
		o.Details["volumes"] = volumes
	}
	place(&o, "config", c.Dir)
	for _, name := range strings.Split(c.Compose["config_files"], ",") {
		if !systemic(name) {
			place(&o, "compose", name)
		}
	}
	compose := object.Details{}
	for k, v := range c.Compose {
		compose[k] = object.Text(v)
	}
	for k, list := range map[string][]string{"networks": c.Networks, "ports": c.Ports} {
		if len(list) > 0 {
			o.Details[k] = texts(list, 100)
		}
	}
	if len(compose) > 0 {
		o.Details["compose"] = compose
	}
	return o
}

// systemic says whether a path belongs to the system rather than to a container
// that sees it: /etc/localtime, a socket in /run, /proc.
func systemic(name string) bool {
	for _, dir := range []string{"/etc", "/run", "/var/run", "/proc", "/sys", "/dev", "/usr", "/boot", "/lib"} {
		if inside(name, dir) {
			return true
		}
	}
	return system[name]
}
