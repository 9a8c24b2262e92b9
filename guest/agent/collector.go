package agent

import (
	"context"

	"cairn/guest/object"
)

// Collector knows one kind of system object, or several that are found alike.
type Collector interface {
	// Inventory finds the objects of its kind in the running guest. It may take
	// long, start programs and read files: nothing is frozen yet. An error
	// is a warning of the run: what was found besides it counts.
	Inventory(ctx context.Context) ([]Found, error)
}

// Found is an object that a collector has found, and what can be done to it.
// Functions may be nil: there is nothing to do.
type Found struct {
	Object object.Object // Consistency.Level is the level that it will have if every step goes well

	// Pre brings the application into a state to be copied, right before the
	// freeze. If it fails the object's consistency is Filesystem.
	Pre func(ctx context.Context) error
	// Holds says that Pre keeps the application from its work until Post: it is
	// called when those of all others have ended.
	Holds bool
	// PreWhat and PostWhat say in a few words what Pre and Post do, for the run's
	// log: "CHECKPOINT".
	PreWhat, PostWhat string
	// Post undoes Pre, after the thaw. It is called whenever Pre was, however
	// that ended.
	Post func(ctx context.Context) error
	// Owed is what undoes Pre when the agent itself has died in between: it is
	// noted on a disk of the guest before Pre is called, and run at the agent's
	// next start. It is not needed where the agent's death undoes Pre, as with a
	// lock that a connection holds.
	Owed *Command
	// Frozen takes what defines the object's state, while the filesystems
	// stand: it must not write a file, start a program, or wait for an
	// application, and takes milliseconds. What it gives is added to the
	// object's Details.
	Frozen func() (object.Details, error)

	// Stop and Start stop and start the object's service around a restore of
	// its files.
	Stop, Start *Command
}

// Command is a program with its arguments, run without a shell unless it is one.
type Command struct {
	Args      []string `json:"args"`
	User      string   `json:"user,omitempty"` // "": root
	Dir       string   `json:"dir,omitempty"`
	Env       []string `json:"env,omitempty"` // added to the agent's
	TimeoutMS int64    `json:"timeout_ms,omitempty"`
}
