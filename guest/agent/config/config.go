package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
)

// Bounds of what is read.
const (
	maxFile  = 64 << 10
	maxFiles = 1000
	maxHook  = 10 * time.Minute
)

// settingsFile is the one that is no object.
const settingsFile = "agent.toml"

// Settings are the agent's own.
type Settings struct {
	FreezeLimit time.Duration // 0: the agent's default
	HookTimeout time.Duration
	LogLevel    slog.Level
	Disabled    []string // names of collectors
}

// Config is what the operator has written down.
type Config struct {
	Settings
	Objects  []Object  // sorted by name
	Problems []Problem // what of it is not used, and why
}

// Load reads a folder, /etc/cairn-agent. A folder that is not there says
// nothing.
func Load(dir string) *Config {
	c := &Config{Settings: Settings{HookTimeout: agent.DefaultTimeout}}
	names, err := filesIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return c
	}
	if err != nil {
		c.Problems = append(c.Problems, Problem{File: dir, Message: oneLine(err.Error())})
		return c
	}
	// First, for it has the default of the others.
	if i := slices.Index(names, settingsFile); i >= 0 {
		c.settings(filepath.Join(dir, settingsFile))
		names = slices.Delete(names, i, i+1)
	}
	for _, name := range names {
		c.object(filepath.Join(dir, name))
	}
	slices.SortStableFunc(c.Objects, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	return c
}

// filesIn gives the names of the *.toml in a folder, sorted.
func filesIn(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := agent.CheckTrusted(d); err != nil {
		return nil, fmt.Errorf("nothing in it is used: %w", err)
	}
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	if len(names) > maxFiles {
		return nil, fmt.Errorf("%d files are more than %d", len(names), maxFiles)
	}
	return names, nil
}

// open reads and parses one file. A problem with it is noted.
func (c *Config) open(name string) *fields {
	text, err := read(name)
	if err != nil {
		c.Problems = append(c.Problems, Problem{File: name, Message: oneLine(err.Error())})
		return nil
	}
	f, err := parse(name, text)
	var p Problem
	if errors.As(err, &p) {
		c.Problems = append(c.Problems, p)
		return nil
	}
	return f
}

func read(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	// Before it is opened: that of a pipe would wait.
	if !info.Mode().IsRegular() {
		return "", errors.New("not used: it is no file")
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := agent.CheckTrusted(f); err != nil {
		return "", fmt.Errorf("not used: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("not used: it has more than %d bytes", maxFile)
	}
	return string(b), nil
}

// settings reads agent.toml. A setting that is wrong leaves the default.
func (c *Config) settings(name string) {
	f := c.open(name)
	if f == nil {
		return
	}
	c.FreezeLimit = f.duration("freeze_limit", time.Second, agent.MaxFreezeLimit, 0)
	c.HookTimeout = f.duration("hook_timeout", time.Millisecond, maxHook, agent.DefaultTimeout)
	if s := f.text("log_level"); s != "" {
		if err := c.LogLevel.UnmarshalText([]byte(s)); err != nil {
			f.wrong("log_level", "want debug, info, warn or error")
		}
	}
	c.Disabled = f.texts("disable")
	f.unknown()
	c.Problems = append(c.Problems, f.problems...)
}

// object reads an object's file. One with a problem is not used: half of it may
// not do what was meant.
func (c *Config) object(name string) {
	f := c.open(name)
	if f == nil {
		return
	}
	o := newObject(f, c.HookTimeout)
	f.unknown()
	for _, other := range c.Objects {
		if len(f.problems) == 0 && other.Name == o.Name {
			f.wrong("name", "%s is defined in %s, too", o.Name, other.file)
		}
	}
	if len(f.problems) > 0 {
		c.Problems = append(c.Problems, f.problems...)
		return
	}
	c.Objects = append(c.Objects, o)
}

func shell() []string {
	if runtime.GOOS == "windows" {
		return []string{"cmd", "/c"}
	}
	return []string{"/bin/sh", "-c"}
}

// Enabled leaves out the collectors that the operator does not want. Names that
// no collector has are a problem.
func (c *Config) Enabled(all []agent.Named) []agent.Named {
	var names []string
	for _, n := range all {
		names = append(names, n.Name)
	}
	for _, d := range c.Disabled {
		if !slices.Contains(names, d) {
			c.Problems = append(c.Problems, Problem{File: settingsFile, Message: object.Text(fmt.Sprintf("disable: there is no collector %q; there are %s", d, strings.Join(names, ", ")))})
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(n agent.Named) bool { return slices.Contains(c.Disabled, n.Name) })
}
