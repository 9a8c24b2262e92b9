//go:build linux

package collect

import (
	"errors"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// Collector is an agent.Collector with a name for the log and the configuration.
type Collector interface {
	agent.Collector
	Name() string
}

// All gives the collectors for the running guest.
func All() []Collector { return all(guest{open: live, proc: "/proc"}) }

func all(g guest) []Collector {
	return []Collector{
		postgres{g}, mysql{g}, redis{g},
		web{g, object.KindNginx}, web{g, object.KindApache},
		containers{g}, users{g}, packages{g},
	}
}

// guest is the running system.
type guest struct {
	open func() tree // its files; to be closed by whoever asks
	proc string      // where procfs is mounted
}

// tree is a file tree that is held open.
type tree interface {
	discover.Root
	Close() error
}

// live is the system's own tree, without the filesystems that may hang.
func live() tree { return discover.OS("/", Remote()...) }

// Limits of how long one thing may take.
const (
	quick    = 5 * time.Second   // a question that has its answer ready
	patience = 20 * time.Second  // one that has to count
	settle   = 120 * time.Second // stopping and starting a service
	poll     = 100 * time.Millisecond
	save     = 10 * time.Minute // bringing data to disk; the caller's deadline is shorter
)

// promise sets the level that an object has if all steps go well.
func promise(o *object.Object, level, reason string) {
	o.Consistency = object.Consistency{Level: level, Reason: object.Text(reason)}
}

// parts are the single errors of a joined one.
func parts(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// both joins what two searches could not see.
func both(a, b error) error { return errors.Join(append(parts(a), parts(b)...)...) }
