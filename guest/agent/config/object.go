package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path"
	"slices"
	"strings"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
)

// maxPaths bounds an object's paths.
const maxPaths = 1000

// Object is a system object that the operator has defined.
type Object struct {
	Name, Title, Service   string
	Paths                  []object.Path
	Pre, Post, Stop, Start *agent.Command // nil: none

	file string
	user string
}

func newObject(f *fields, timeout time.Duration) Object {
	o := Object{file: f.file, Name: f.text("name"), Title: f.text("title"), Service: f.text("service")}
	if err := object.CheckName(o.Name); err != nil {
		f.wrong("name", "want a name like name = \"shop\" or name = \"group/shop\", of letters that can be in a file's name")
	}
	o.Paths = f.paths("paths")
	o.Pre, o.Post, o.Stop, o.Start = f.command("pre"), f.command("post"), f.command("stop"), f.command("start")
	timeout = f.duration("timeout", time.Millisecond, maxHook, timeout)
	o.user = f.text("user")
	for _, c := range o.commands() {
		c.TimeoutMS, c.User = timeout.Milliseconds(), o.user
	}
	return o
}

// paths takes a list of paths, or a table with the role of each.
func (f *fields) paths(key string) []object.Path {
	v, ok := f.get(key)
	if !ok {
		return nil
	}
	var all []object.Path
	bad := func() []object.Path {
		f.wrong(key, "want up to %d absolute paths, %s = [\"/srv/shop\"], or with names, %s = { data = \"/srv/shop\" }", maxPaths, key, key)
		return nil
	}
	switch v := v.(type) {
	case []any:
		list, ok := asTexts(v)
		if !ok {
			return bad()
		}
		for i, p := range list {
			role := "data"
			if i > 0 {
				role = fmt.Sprintf("data-%d", i+1)
			}
			all = append(all, object.Path{Role: role, Path: path.Clean(p)})
		}
	case map[string]any:
		for role, p := range v {
			s, ok := p.(string)
			if !ok || object.PartOf(role) != role {
				return bad()
			}
			all = append(all, object.Path{Role: role, Path: path.Clean(s)})
		}
		slices.SortFunc(all, func(a, b object.Path) int {
			if a.Role < b.Role {
				return -1
			}
			return 1
		})
	default:
		return bad()
	}
	if len(all) > maxPaths || slices.ContainsFunc(all, func(p object.Path) bool { return object.CheckPath(p.Path) != nil }) {
		return bad()
	}
	return all
}

// commands gives those that it has.
func (o *Object) commands() []*agent.Command {
	return slices.DeleteFunc([]*agent.Command{o.Pre, o.Post, o.Stop, o.Start}, func(c *agent.Command) bool { return c == nil })
}

// Found gives the object as the agent takes it. Its consistency is application
// only if there is a step that brings it to rest.
func (o *Object) Found() agent.Found {
	f := agent.Found{Object: object.Object{
		Name: o.Name, Kind: object.KindCustom, Title: o.Title, Service: o.Service, Paths: o.Paths,
		Consistency: object.Consistency{Level: object.Filesystem, Reason: "the operator has written down no pre step for it"},
	}}
	if o.Pre != nil {
		f.Object.Consistency = object.Consistency{Level: object.Application, Reason: "its pre step, written down by the operator, ended well"}
		f.Pre, f.PreWhat = o.Pre.Run, object.Text(strings.Join(o.Pre.Args, " "))
	}
	if o.Post != nil {
		f.Holds = true // what has to be undone may
		f.Post, f.Owed, f.PostWhat = o.Post.Run, o.Post, object.Text(strings.Join(o.Post.Args, " "))
	}
	f.Stop, f.Start = o.Stop, o.Start
	return f
}

// Check looks for what will fail in a run although it is written well: users and
// programs that are not there, and paths.
func (o *Object) Check() []Problem {
	var all []Problem
	add := func(format string, args ...any) {
		all = append(all, Problem{File: o.file, Message: oneLine(fmt.Sprintf(format, args...))})
	}
	if o.user != "" {
		if _, err := user.Lookup(o.user); err != nil {
			add("user: %v", err)
		}
	}
	for _, c := range o.commands() {
		if _, err := exec.LookPath(c.Args[0]); err != nil {
			add("the program %s: %v", c.Args[0], err)
		}
	}
	for _, p := range o.Paths {
		if _, err := os.Stat(p.Path); err != nil {
			add("paths: %v", err)
		}
	}
	return all
}

// Collector gives the operator's objects of a folder, as they are written down
// at the time of each run.
type Collector struct{ Dir string }

// Inventory implements agent.Collector.
func (c Collector) Inventory(context.Context) ([]agent.Found, error) {
	config := Load(c.Dir)
	var all []agent.Found
	for _, o := range config.Objects {
		all = append(all, o.Found())
	}
	var problems []error
	for _, p := range config.Problems {
		problems = append(problems, p)
	}
	return all, errors.Join(problems...)
}
