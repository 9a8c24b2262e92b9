//go:build unix

package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
)

// folder writes files into a folder that root owns.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoad(t *testing.T) {
	dir := folder(t, map[string]string{
		"agent.toml": "freeze_limit = '20s'\nhook_timeout = '5s'\nlog_level = 'debug'\ndisable = ['packages']\n",
		"shop.toml": `name = "shop"
title = "The shop"
paths = ["/srv/shop/", "/etc/shop"]
pre = ["/bin/echo", "a b"]
post = "echo done >&2"
timeout = "2m"
user = "nobody"
service = "shop.service"
`,
		"cache.toml":   "name = 'cache/main'\n[paths]\ndata = '/srv/cache'\nconfig = '/etc/cache'\n",
		"README":       "no object",
		".hidden.toml": "no object",
	})
	c := Load(dir)
	if len(c.Problems) != 0 {
		t.Fatalf("%v", c.Problems)
	}
	if c.FreezeLimit != 20*time.Second || c.HookTimeout != 5*time.Second || c.LogLevel != slog.LevelDebug || !slices.Equal(c.Disabled, []string{"packages"}) {
		t.Errorf("%+v", c.Settings)
	}
	if len(c.Objects) != 2 || c.Objects[0].Name != "cache/main" || c.Objects[1].Name != "shop" {
		t.Fatalf("%+v", c.Objects)
	}
	cache, shop := c.Objects[0].Found(), c.Objects[1].Found()
	if cache.Object.Consistency.Level != object.Filesystem || cache.Pre != nil || cache.Post != nil || cache.Owed != nil {
		t.Errorf("%+v", cache)
	}
	if want := []object.Path{{Role: "config", Path: "/etc/cache"}, {Role: "data", Path: "/srv/cache"}}; !slices.Equal(cache.Object.Paths, want) {
		t.Errorf("%+v", cache.Object.Paths)
	}
	o := shop.Object
	if o.Title != "The shop" || o.Service != "shop.service" || o.Consistency.Level != object.Application || o.Paths[0].Path != "/srv/shop" || o.Paths[1].Role != "data-2" {
		t.Errorf("%+v", o)
	}
	post := shop.Owed
	if post == nil || !slices.Equal(post.Args, []string{"/bin/sh", "-c", "echo done >&2"}) || post.TimeoutMS != 120_000 || post.User != "nobody" || shop.Stop != nil {
		t.Errorf("%+v", post)
	}
	if _, err := object.Encode(&object.Document{Version: 1, Objects: []object.Object{cache.Object, o}}); err != nil {
		t.Error(err)
	}
	none := Load(filepath.Join(dir, "none"))
	if len(none.Problems) != 0 || len(none.Objects) != 0 || none.HookTimeout != agent.DefaultTimeout {
		t.Errorf("%+v", none)
	}
}

// TestProblems: each is named by its line, with what is meant; the other files
// work.
func TestProblems(t *testing.T) {
	good := "name = 'good'\npre = 'true'\n"
	for text, want := range map[string]string{
		"name = 'x'\npre = [\n":                      "x.toml:",
		"name = \n":                                  "x.toml:1:",
		"title = 'x'\n":                              "name: want",
		"name = 'a/b/c'\n":                           "x.toml:1: name: want",
		"name = 'x'\npaths = ['srv']\n":              "x.toml:2: paths: want up to",
		"name = 'x'\npaths = ['/a', 3]\n":            "x.toml:2: paths: want",
		"name = 'x'\npaths = '/a'\n":                 "x.toml:2: paths: want",
		"name = 'x'\n[paths]\n'a/b' = '/a'\n":        "x.toml:2: paths: want",
		"name = 'x'\n\npre = []\n":                   "x.toml:3: pre: want a program",
		"name = 'x'\npost = ''\n":                    "x.toml:2: post: want a program",
		"name = 'x'\nstop = 3\n":                     "x.toml:2: stop: want",
		"name = 'x'\nstart = ['a', \"b\\u0000\"]\n":  "x.toml:2: start: want",
		"name = 'x'\ntimeout = 30\n":                 "x.toml:2: timeout: want a time between",
		"name = 'x'\ntimeout = '1h'\n":               "x.toml:2: timeout: want a time between",
		"name = 'x'\nuser = 1000\n":                  "x.toml:2: user: want a text",
		"name = 'x'\nprae = 'sync'\n":                "x.toml:2: prae: there is no such setting; known here are name,",
		"name = 'x'\nname = 'y'\n":                   "x.toml:2:",
		"name = 'good'\n":                            "x.toml:1: name: good is defined in",
		"#" + strings.Repeat("x", maxFile):           "x.toml: not used: it has more than",
		"name = 'x'\nstop = \"a\nb\"\n":              "x.toml:2:",
		"name = 'x'\npost = 'a'\ntitle = ['a']":      "x.toml:3: title",
		"name = 'x'\n[[paths]]\ndata = '/a'":         "x.toml:2: paths",
		strings.Repeat("a=[", 1000) + "name = 'x'\n": "x.toml:1",
	} {
		c := Load(folder(t, map[string]string{"good.toml": good, "x.toml": text}))
		if len(c.Problems) == 0 || !strings.Contains(c.Problems[0].Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, c.Problems, want)
		}
		if len(c.Objects) != 1 || c.Objects[0].Name != "good" {
			t.Errorf("%.60q: objects %+v", text, c.Objects)
		}
	}
	for text, want := range map[string]string{
		"freeze_limit = '2m'\n":                     "agent.toml:1: freeze_limit: want a time between 1s and 1m0s",
		"freeze_limit = '20s'\nlog_level = 'all'":   "agent.toml:2: log_level: want debug",
		"freeze_limit = '20s'\ndisable = 'x'":       "agent.toml:2: disable: want a list",
		"freeze_limit = '20s'\nfreeze_limits = 'x'": "agent.toml:2: freeze_limits: there is no such",
	} {
		c := Load(folder(t, map[string]string{"good.toml": good, "agent.toml": text}))
		if len(c.Problems) != 1 || !strings.Contains(c.Problems[0].Error(), want) || len(c.Objects) != 1 {
			t.Errorf("%q: %v, want %q", text, c.Problems, want)
		}
	}
}

// TestTrust: what others than root may write is not run as root.
func TestTrust(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	text := map[string]string{"x.toml": "name = 'x'\npre = 'true'\n", "good.toml": "name = 'good'\n"}
	for name, spoil := range map[string]func(dir, file string) error{
		"chmod go-w": func(_, file string) error { return os.Chmod(file, 0o666) },
		"go-w":       func(_, file string) error { return os.Chmod(file, 0o664) },
		"chown root": func(_, file string) error { return os.Chown(file, 1000, 0) },
		"no file":    func(_, file string) error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)) },
	} {
		dir := folder(t, text)
		if err := spoil(dir, filepath.Join(dir, "x.toml")); err != nil {
			t.Fatal(err)
		}
		c := Load(dir)
		if len(c.Objects) != 1 || c.Objects[0].Name != "good" || len(c.Problems) != 1 || !strings.Contains(c.Problems[0].Message, name) {
			t.Errorf("%s: %+v", name, c)
		}
	}
	dir := folder(t, text)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if c := Load(dir); len(c.Objects) != 0 || len(c.Problems) != 1 || !strings.Contains(c.Problems[0].Error(), dir) {
		t.Errorf("%+v", c)
	}
}

func TestCollector(t *testing.T) {
	dir := folder(t, map[string]string{"x.toml": "name = 'x'\npre = 'exit 4'\n", "y.toml": "name ="})
	found, err := Collector{Dir: dir}.Inventory(t.Context())
	if len(found) != 1 || err == nil || !strings.Contains(err.Error(), "y.toml:1") {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := found[0].Pre(context.Background()); err == nil || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("%v", err)
	}
}

func TestCheck(t *testing.T) {
	c := Load(folder(t, map[string]string{"x.toml": "name = 'x'\npre = ['/no/such/program']\nuser = 'nobody-of-this-name'\npaths = ['/no/such/path']"}))
	if len(c.Problems) != 0 || len(c.Objects) != 1 {
		t.Fatalf("%+v", c)
	}
	text := fmt.Sprint(c.Objects[0].Check())
	for _, want := range []string{"x.toml: user:", "the program /no/such/program", "/no/such/path"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

func TestEnabled(t *testing.T) {
	c := &Config{Settings: Settings{Disabled: []string{"redis", "oracle"}}}
	got := c.Enabled([]agent.Named{{Name: "redis"}, {Name: "users"}})
	if len(got) != 1 || got[0].Name != "users" || len(c.Problems) != 1 || !strings.Contains(c.Problems[0].Error(), `"oracle"; there are redis, users`) {
		t.Errorf("%+v, %v", got, c.Problems)
	}
}

// FuzzObject: a file of any contents gives an object that a document can hold,
// or a problem that says where.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{
		"name = 'shop'\npaths = ['/srv']\npre = ['a', 'b']\npost = 'c'\ntimeout = '3s'\n",
		"name = 'a/b'\n[paths]\ndata = '/srv'\n", "name = [1,", "x.y.z = 1\n'' = 2\n", "paths = [[[]]]", "name = 2026-01-01",
	} {
		f.Add(seed)
	}
	dir := f.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(dir, "x.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := Load(dir)
		if len(c.Objects)+len(c.Problems) == 0 {
			t.Error("neither an object nor a problem")
		}
		for _, p := range c.Problems {
			if p.Message == "" || strings.ContainsRune(p.Message, '\n') {
				t.Errorf("%+v", p)
			}
		}
		for _, o := range c.Objects {
			found := o.Found()
			if _, err := object.Encode(&object.Document{Version: 1, Objects: []object.Object{found.Object}}); err != nil {
				t.Errorf("%+v: %v", o, err)
			}
		}
	})
}
