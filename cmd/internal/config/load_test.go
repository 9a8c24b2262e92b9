package config

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
)

var update = flag.Bool("update", false, "write the golden files anew")

// folder makes a configuration folder of files by name.
func folder(t *testing.T, files map[string]string) Dirs {
	t.Helper()
	d := Dirs{Config: t.TempDir()}
	for name, text := range files {
		path := filepath.Join(d.Config, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// messages gives what Load says, with the folder's name left out.
func messages(t *testing.T, d Dirs) string {
	t.Helper()
	c, err := Load(d)
	if err == nil {
		return "no error"
	}
	if c != nil {
		t.Error("there is a configuration beside the error")
	}
	return strings.ReplaceAll(err.Error(), d.Config+"/", "")
}

var now = time.Date(2026, 11, 29, 8, 30, 0, 0, time.UTC)

const basis = "[repository.main]\naddress = \"/backup/repo\"\n"

// The messages of testdata/errors.golden are to be read as an administrator
// reads them at night. Each case of testdata/errors.txt is a folder of files.
func TestMessages(t *testing.T) {
	cases, err := os.ReadFile("testdata/errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, one := range strings.Split(string(cases), "=== ")[1:] {
		title, body, _ := strings.Cut(one, "\n")
		files := map[string]string{}
		for _, f := range strings.Split("\n"+body, "\n-- ")[1:] {
			name, text, _ := strings.Cut(f, " --\n")
			files[name] = text
		}
		fmt.Fprintf(&out, "=== %s\n%s\n", title, messages(t, folder(t, files)))
	}
	if *update {
		if err := os.WriteFile("testdata/errors.golden", []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/errors.golden")
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("the messages differ from testdata/errors.golden (-update writes it):\n%s", out.String())
	}
}

// The example has no error, no warning, and shows every setting there is.
func TestExample(t *testing.T) {
	key := filepath.Join(t.TempDir(), "main.key")
	if err := os.WriteFile(key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(Example(), "/etc/cairn/main.key", key)
	c, err := Load(folder(t, map[string]string{"cairn.toml": text}))
	if err != nil {
		t.Fatal(err)
	}
	all, warnings := c.Inspect(context.Background(), nil, now)
	if len(warnings) > 0 {
		t.Errorf("warnings: %v", warnings)
	}
	if names := namesOf(c.Jobs[1].Machines(all)); c.Jobs[1].Name != "nightly" || names != "mail01" {
		t.Errorf("nightly has %s", names)
	}

	// With what is commented out, but for what excludes another setting.
	setting := regexp.MustCompile(`(?m)^# (\[|[a-z_]+ = )`)
	full := strings.ReplaceAll(setting.ReplaceAllString(text, "$1"), "\nonly_off", "\n# only_off")
	if _, err := Load(folder(t, map[string]string{"cairn.toml": full})); err != nil {
		t.Errorf("with all settings: %v\n%s", err, full)
	}
	for _, source := range []string{"load.go", "vm.go", "table.go", "notify.go", "web.go"} {
		code, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:t\.[a-z]+|one\.text|parsed\(t,|socket)\(?\s*"([a-z_]+)"`).FindAllStringSubmatch(string(code), -1) {
			if m[1] != "name" && !strings.HasSuffix(m[1], "_") && !regexp.MustCompile(`(?m)^(# )?`+m[1]+` = |\b`+m[1]+`\]\]`).MatchString(text) {
				t.Errorf("the example lacks %s", m[1])
			}
		}
	}
}

func namesOf(all []Machine) string {
	var names []string
	for _, m := range all {
		names = append(names, m.Name)
	}
	return strings.Join(names, " ")
}

// All files count as one, and a file of vms.d is a VM as any other.
func TestMerge(t *testing.T) {
	d := folder(t, map[string]string{
		"cairn.toml":          basis + "key_file = \"/k\"\n[host]\nconcurrency = 4\ntime_zone = \"Europe/Berlin\"\n",
		"cairn.d/10-web.toml": "[job.web]\nvms = [\"web*\"]\nschedule = \"Mon..Fri 22:00\"\nwindow = \"23:00-06:00\"\nkeep_daily = 7\nkeep_within = \"30d\"\n",
		"cairn.d/20-db.toml":  "[vm.db01]\nlibvirt = \"qemu:///system\"\ntags = [\"db\"]\n[job.db]\nvms = \"tag:d*\"\nexcept = [\"db09\"]\nschedule = [\"0 3 * * *\", \"12:00\"]\ntime_zone = \"UTC\"\nread_limit = \"50 MiB/s\"\nkeep_last = 3\n",
		"cairn.d/.10.toml":    "an editor's",
		"cairn.d/readme":      "not ours",
		"vms.d/web01.toml":    "name = \"web01\"\nqmp = \"/run/web01.qmp\"\n",
		"vms.d/web02.toml":    "name = \"web02\"\n[[disk]]\nname = \"vda\"\nfile = \"/vm/web02.raw\"\nformat = \"raw\"\n",
	})
	c, err := Load(d)
	if err != nil {
		t.Fatal(err)
	}
	if got := namesOf(c.VMs); got != "db01 web01 web02" {
		t.Errorf("VMs: %s", got)
	}
	if c.VMs[0].Domain != "db01" || len(c.VMs[2].Disks) != 1 || c.Host.Concurrency != 4 || c.Host.ConcurrencyPerStorage != DefaultConcurrencyPerStorage {
		t.Errorf("got %+v", c)
	}
	db, web := c.Jobs[0], c.Jobs[1]
	if db.Repository != "main" || namesOf(db.Machines(c.VMs)) != "db01" || namesOf(web.Machines(c.VMs)) != "web01 web02" {
		t.Errorf("jobs: %+v, %+v", db, web)
	}
	if db.ReadLimit != 50<<20 || db.Keep.Last != 3 || web.Keep.Daily != 7 || web.Keep.Within != 30*24*time.Hour || web.Keep.Zone.String() != "Europe/Berlin" || web.KeepText != "7 daily, within 30d" {
		t.Errorf("settings: %+v, %+v", db, web)
	}
	var runs []string
	for _, at := range append(db.Coming(now, 3), web.Coming(now, 2)...) {
		runs = append(runs, at.Format("02 15:04 MST"))
	}
	// web waits for its window.
	if got := strings.Join(runs, ", "); got != "29 12:00 UTC, 30 03:00 UTC, 30 12:00 UTC, 30 23:00 CET, 01 23:00 CET" {
		t.Errorf("runs: %s", got)
	}
	if got := web.Where.String(); got != filepath.Join(d.Config, "cairn.d/10-web.toml")+":1:6" {
		t.Errorf("web is at %s", got)
	}
	if _, err := json.Marshal(c); err != nil {
		t.Error(err)
	}

	shown := meansTheSame(t, c)
	if !strings.Contains(shown, "# Monday to Friday at 22:00 (Europe/Berlin)\n# next: Mon 2026-11-30 23:00 CET, ") {
		t.Errorf("shown:\n%s", shown)
	}
}

// TestExampleShown: also of all settings at once.
func TestExampleShown(t *testing.T) {
	setting := regexp.MustCompile(`(?m)^# (\[|[a-z_]+ = )`)
	full := strings.ReplaceAll(setting.ReplaceAllString(Example(), "$1"), "\nonly_off", "\n# only_off")
	c, err := Load(folder(t, map[string]string{"cairn.toml": full}))
	if err != nil {
		t.Fatal(err)
	}
	meansTheSame(t, c)
}

// meansTheSame shows a configuration, and what is shown must load as the same.
func meansTheSame(t *testing.T, c *Config) string {
	t.Helper()
	var shown bytes.Buffer
	if err := c.Write(&shown, now); err != nil {
		t.Fatal(err)
	}
	again, err := Load(folder(t, map[string]string{"cairn.toml": shown.String()}))
	if err != nil {
		t.Fatalf("%v\n%s", err, shown.String())
	}
	if a, b := meaning(t, c), meaning(t, again); a != b {
		t.Errorf("shown:\n%s\ngot  %s\nwant %s", shown.String(), b, a)
	}
	return shown.String()
}

// meaning is a configuration without where it was written.
func meaning(t *testing.T, c *Config) string {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	delete(tree, "files")
	var strip func(v any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, "where")
			for _, one := range v {
				strip(one)
			}
		case []any:
			for _, one := range v {
				strip(one)
			}
		}
	}
	strip(tree)
	if b, err = json.Marshal(tree); err != nil {
		t.Fatal(err)
	}
	text := string(b) + c.Host.TimeZone.String()
	for _, j := range c.Jobs {
		text += fmt.Sprintf("\n%s %v %v", j.TimeZone, j.Keep, j.Coming(now, 2))
	}
	return text
}

func TestNothingThere(t *testing.T) {
	c, err := Load(Dirs{Config: filepath.Join(t.TempDir(), "none")})
	if err != nil || len(c.Files) != 0 || c.Host.Concurrency != DefaultConcurrency {
		t.Errorf("got %+v, %v", c, err)
	}
}

// Sizes read from outside are bounded.
func TestBounds(t *testing.T) {
	big := basis + strings.Repeat("# a comment of a line, forty characters\n", 30_000)
	if got := messages(t, folder(t, map[string]string{"cairn.toml": big})); got != "cairn.toml: it is larger than 1 MiB: that is no configuration; split it into files in cairn.d if it is" {
		t.Error(got)
	}
	deep := "a = " + strings.Repeat("[", 500_000)
	if got := messages(t, folder(t, map[string]string{"cairn.toml": deep})); got != "cairn.toml: values are nested too deep" {
		t.Error(got)
	}
	d := folder(t, map[string]string{"cairn.d/a.toml/x": ""})
	if got := messages(t, d); got != "cairn.d/a.toml: it is no regular file" {
		t.Error(got)
	}
	many := basis
	for i := range 30 {
		many += fmt.Sprintf("x%d = 1\n", i)
	}
	got := strings.Split(messages(t, folder(t, map[string]string{"cairn.toml": many})), "\n")
	if len(got) != maxProblems+1 || got[maxProblems] != "and 10 more" || !strings.HasPrefix(got[19], "cairn.toml:22:1: ") {
		t.Errorf("%q", got)
	}
}

// Warnings are for what is allowed, and probably not meant.
func TestWarnings(t *testing.T) {
	d := folder(t, map[string]string{"cairn.toml": basis + `[repository.old]
address = "/old"
key_file = "/none/key"
[vm.web01]
qmp = "/run/web01.qmp"
[vm.db01]
qmp = "/run/db01.qmp"
[vm.db02]
qmp = "/run/db02.qmp"
[job.web]
repository = "main"
vms = ["web*", "wbe01",
       "mail*"]
schedule = ["12:00", "2020-01-01"]
window = "22:00-06:00"
[job.db]
repository = "main"
vms = ["db01"]
schedule = "daily"
keep_daily = 7
[job.weekly]
repository = "main"
vms = ["db01"]
schedule = "weekly"
keep_weekly = 4
`})
	c, err := Load(d)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range c.Warnings(c.VMs, now) {
		got = append(got, strings.ReplaceAll(p.String(), d.Config+"/", ""))
	}
	want := []string{
		`cairn.toml:1:13: repository main: it has no key_file: a job that runs by itself cannot ask for a passphrase`,
		`cairn.toml:3:13: repository old: no job uses it`,
		`cairn.toml:3:13: repository old: key_file: there is no /none/key: make it with cairn key add --kind write --generate /none/key`,
		`cairn.toml:10:5: VM db02 is in no job: nothing backs it up`,
		`cairn.toml:12:6: job web: schedule "12:00" comes at 12:00, when the window 22:00-06:00 is closed: it waits until 22:00`,
		`cairn.toml:12:6: job web: schedule "2020-01-01": it lies in the past and never comes again`,
		`cairn.toml:12:6: job web: it has no keep_daily or other rule: its points stay for ever, and the repository grows`,
		`cairn.toml:14:16: job web: pattern "wbe01" matches no VM; did you mean web01?`,
		`cairn.toml:15:8: job web: pattern "mail*" matches no VM`,
		`cairn.toml:23:6: job weekly: VM db01 is in job db, too (cairn.toml:18:6), which keeps by other rules: rules look at all points of a VM in the repository, so each job forgets what the other would keep`,
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("got:\n%s\nwant:\n%s", a, b)
	}
}

// Discoveries find what has no table of its own.
func TestFind(t *testing.T) {
	run := t.TempDir()
	for _, name := range []string{"100.qmp", "101.qmp"} {
		l, err := net.Listen("unix", filepath.Join(run, name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if err := os.WriteFile(filepath.Join(run, "102.qmp"), nil, 0o600); err != nil { // no socket
		t.Fatal(err)
	}
	d := folder(t, map[string]string{"cairn.toml": basis + `[vm.database]
libvirt = "qemu:///system"
domain = "db01"
[vm.mail]
qmp = "` + run + `/101.qmp"
[discover.kvm]
libvirt = "qemu:///system"
include = ["web*", "db*", "übel", "100"]
except = ["*-test"]
tags = ["kvm"]
exclude = ["vdb"]
[discover.pve]
qmp = "` + run + `/*.qmp"
[discover.broken]
libvirt = "qemu+ssh://far/system"
`})
	c, err := Load(d)
	if err != nil {
		t.Fatal(err)
	}
	all, warnings := c.Find(context.Background(), func(_ context.Context, uri string) ([]string, error) {
		if uri != "qemu:///system" {
			return nil, errors.New("no way there")
		}
		return []string{"web01", "web-test", "db01", "übel", "other", "100"}, nil
	})
	if got := namesOf(all); got != "100 database mail web01" {
		t.Errorf("found %s", got)
	}
	web := all[3]
	if web.Discovery != "kvm" || web.Domain != "web01" || !slices.Equal(web.Tags, []string{"kvm"}) || !slices.Equal(web.Exclude, []string{"vdb"}) {
		t.Errorf("found %+v", web)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, w.Text)
	}
	want := []string{
		"discover broken: nothing was found: no way there",
		`discover kvm: "übel" cannot name a VM: use letters, digits, '.', '_' and '-', beginning with a letter or digit; give it a table of its own: [vm.NAME] with domain = "übel"`,
		"discover pve: VM 100 was found before, by discover kvm, and is left out here",
	}
	if !slices.Equal(got, want) {
		t.Errorf("warnings:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestPatterns(t *testing.T) {
	v := VM{Name: "web01", Tags: []string{"production", "eu-1"}}
	for text, want := range map[string]bool{"web01": true, "web*": true, "web[0-9]?": true, "*": true, "web": false, "WEB01": false,
		"tag:production": true, "tag:eu-*": true, "tag:web01": false, "tag:*": true} {
		if (Pattern{Text: text}).Fits(v) != want {
			t.Errorf("%s: not %v", text, want)
		}
	}
	if (Pattern{Text: "tag:*"}).Fits(VM{Name: "db"}) {
		t.Error("a VM without tags has one")
	}
}

func TestValues(t *testing.T) {
	for text, want := range map[string]string{"5 GiB": "5 GiB", "5GiB": "5 GiB", "1.5 gib": "1536 MiB", "500MB": "500000000 B", "10 B": "10 B",
		"5": "!the unit is missing: write 5 GiB, or another of B, KiB, MiB, GiB and TiB", "5G": "!G has two meanings: write 5 GiB (of 1,024) or 5 GB (of 1,000)",
		"0 GiB": "!it must be more than nothing", "9 EiB": "!it is past 1 EiB", "5 GiX": "!GiX is no unit: write B, KiB, MiB, GiB or TiB", "-5 GiB": "!write a size as a number and a unit, like 5 GiB or 500 MiB", "NaN": "!write a size as a number and a unit, like 5 GiB or 500 MiB"} {
		got, err := ParseSize(text)
		check(t, text, want, got, err)
	}
	for text, want := range map[string]string{"50 MiB/s": "50 MiB/s", "1GB/s": "1000000000 B/s", "50 MiB": "!write a rate as a size a second, like 50 MiB/s",
		"100 Mbit": "!write bytes a second, like 50 MiB/s", "x/s": "!write a size as a number and a unit, like 5 GiB or 500 MiB"} {
		got, err := ParseRate(text)
		check(t, text, want, got, err)
	}
	for text, want := range map[string]string{"2h30m": "2h30m", "7d": "1w", "1w 3d": "10d", "90m": "1h30m", "1y": "365d", "36 h": "1d12h",
		"7": "!the unit is missing: write 7m, 7h or 7d, for minutes, hours or days", "30m2h": "!h comes too late: write the larger units first, each once",
		"5min": "!min is no unit: write y, w, d, h, m or s", "0h": "!it must be more than nothing", "201y": "!it is past 200 years", "1h!": "!write a time span as numbers and units, like 2h30m or 7d"} {
		got, err := ParseDuration(text)
		check(t, text, want, got, err)
	}
}

// check compares a value, or with ! before it an error.
func check[T fmt.Stringer](t *testing.T, text, want string, got T, err error) {
	t.Helper()
	switch {
	case err != nil && "!"+err.Error() != want, err == nil && got.String() != want:
		t.Errorf("%q: %v, %v; want %s", text, got, err, want)
	}
}

// FuzzValues: what is written is read back the same.
func FuzzValues(f *testing.F) {
	f.Add("5 GiB", int64(1<<30))
	f.Add("1w3d2h", int64(3600))
	f.Fuzz(func(t *testing.T, text string, n int64) {
		_, _ = ParseRate(text) // no panic
		if d, err := ParseDuration(text); err == nil {
			if again, err := ParseDuration(d.String()); err != nil || again != d {
				t.Errorf("%q: %v, again %v, %v", text, d, again, err)
			}
		}
		if n = n & (1<<60 - 1); n > 0 {
			if got, err := ParseSize(Size(n).String()); err != nil || got != Size(n) && n < 1<<53 {
				t.Errorf("%d: %s is read as %d, %v", n, Size(n), got, err)
			}
		}
	})
}

// paths lists the paths of all values of a tree, as positions has them.
func paths(prefix string, v any, out *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for key, one := range v {
			*out = append(*out, child(prefix, key))
			paths(child(prefix, key), one, out)
		}
	case []map[string]any:
		for i, one := range v {
			*out = append(*out, element(prefix, i))
			paths(element(prefix, i), one, out)
		}
	case []any:
		for i, one := range v {
			*out = append(*out, element(prefix, i))
			paths(element(prefix, i), one, out)
		}
	}
}

// checkPositions: the scanner finds what the parser of TOML finds, no more and no
// less, and each key's place begins with the key.
func checkPositions(t *testing.T, text string) {
	t.Helper()
	p, err := scan(text)
	if err != nil {
		return
	}
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		return // it has only to end
	}
	var want, got []string
	paths("", tree, &want)
	for path, offset := range p.keys {
		got = append(got, path)
		if offset < 0 || offset > len(text) || p.values[path] < offset {
			t.Errorf("%s is at %d, its value at %d", path, offset, p.values[path])
		}
	}
	sort.Strings(want)
	sort.Strings(got)
	if !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%q:\n got %q\nwant %q", text, got, want)
	}
}

func TestPositions(t *testing.T) {
	text := "a = 1 # [no]\n\n [ job . \"na.me\" ]\nvms = [ 'x', # \"]\n  \"y\\\"]\", ]\ninline = { k = \"}\", 'l'.m = [1, 2] }\nlong = \"\"\"\n[not.a.table]\nx = 1 \"\"\"\"\nraw = '''\n'\n''''\n[[vm.d]]\nn.o = 1979-05-27 07:32:00\n[[vm.d]]\n[vm.d.sub]\n\"é\\u00e4\" = 1"
	checkPositions(t, text)
	f, err := parseFile("f", text)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{`."a"`: "f:1:1 f:1:5", `."job"`: "f:3:4 f:3:4", `."job"."na.me"`: "f:3:10 f:3:10", `."job"."na.me"."vms"`: "f:4:1 f:4:7",
		`."job"."na.me"."vms"[1]`: "f:5:3 f:5:3", `."job"."na.me"."inline"."l"."m"[1]`: "f:6:33 f:6:33", `."vm"."d"[1]."sub"."éä"`: "f:17:1 f:17:13", `."nobody"`: "f f"} {
		if got := f.key(path).String() + " " + f.value(path).String(); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	checkPositions(t, Example())
}

// TestPositionsOfSuite: in the files of toml-test, which come with the parser.
func TestPositionsOfSuite(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/BurntSushi/toml").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	tests := filepath.Join(strings.TrimSpace(string(dir)), "internal/toml-test/tests")
	files := 0
	err = filepath.WalkDir(tests, func(path string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".toml" {
			return err
		}
		text, err := os.ReadFile(path)
		files++
		checkPositions(t, string(text))
		return err
	})
	if err != nil || files < 500 {
		t.Skipf("the parser's files are not here: %d found, %v", files, err)
	}
}

// FuzzLoad: whatever the file: no panic, an error has places within the file, and
// what is loaded can be shown and loaded again.
func FuzzLoad(f *testing.F) {
	// Short ones: a long one takes the fuzzer a minute to make smaller.
	comment := regexp.MustCompile(`(?m) *#.*$\n?`)
	for _, one := range strings.Split(comment.ReplaceAllString(Example(), "\n"), "\n[") {
		f.Add("[" + strings.TrimPrefix(strings.TrimSpace(one), "["))
	}
	f.Add(basis + "[job.a]\nvms=['*']\nschedule='daily'\n")
	f.Add("a.b.c = [{x = 1}, {y.z = \"\"\"\n\"\"\"\"\"}]\n[[t]]\n[[t.u]]\nv = [ [1, 2], # x\n ]\n")
	f.Add("\ufeff[vm.\"a.b\"]\r\nqmp = '/x'\r\n")
	f.Add("job = 1\n[[vm]]\nname = 3\n[repository]\naddress = \"\"\n[host.x]\n")
	f.Fuzz(checkLoad)
}

// TestMutated is FuzzLoad with whole files, in which lines, words and letters are
// lost, doubled and moved: the fuzzer is slow with those.
func TestMutated(t *testing.T) {
	count := 500
	if os.Getenv("CAIRN_LONG") != "" {
		count = 20_000
	}
	comment := regexp.MustCompile(`(?m)^# -*.*$\n`)
	setting := regexp.MustCompile(`(?m)^# (\[|[a-z_]+ = )`)
	whole := comment.ReplaceAllString(setting.ReplaceAllString(Example(), "$1"), "")
	whole += "\n[job.'b.c']\nvms = ['x', # \"]\n  \"\"\"y\"\"\", ]\nschedule = '''0 3 * * 1\n'''\nx = { a.b = [1, {c = \"}\"}], d = 1979-05-27 07:32:00 }\n[[vm.d.disk]]\nname.x = 1\n[[vm.d.disk]]\n[vm.d.disk.sub]\n\"\\u00e4\" = [[1, 2], []]\n"
	cut := regexp.MustCompile(`[A-Za-z0-9_]+|\s+|[^A-Za-z0-9_\s]`)
	marks := strings.Split("\"|'|[|]|{|}|#|=|.|,|\n|\\|é|\x00| |-|0|*|\"\"\"|[[|]]|\r\n", "|")
	rnd := rand.New(rand.NewPCG(1, 2))
	loaded := 0
	for i := range count {
		units := cut.FindAllString(whole, -1)
		if i%3 == 0 {
			units = strings.SplitAfter(whole, "\n")
		}
		for range 1 + rnd.IntN(6) {
			a, b := rnd.IntN(len(units)), rnd.IntN(len(units))
			switch rnd.IntN(4) {
			case 0:
				units = slices.Delete(units, a, min(a+1+rnd.IntN(3), len(units)))
			case 1:
				units = slices.Insert(units, a, units[b])
			case 2:
				units[a], units[b] = units[b], units[a]
			case 3:
				units[a] = marks[rnd.IntN(len(marks))]
			}
		}
		text := strings.Join(units, "")
		if checkLoad(t, text); t.Failed() {
			t.Fatalf("case %d:\n%s", i, text)
		}
		if toml.Unmarshal([]byte(text), &map[string]any{}) == nil {
			loaded++
		}
	}
	if loaded < count/10 {
		t.Errorf("only %d of %d were TOML: the test shows little", loaded, count)
	}
}

// checkLoad is what holds for any text.
func checkLoad(t *testing.T, text string) {
	if len(text) > maxFile {
		return
	}
	checkPositions(t, strings.TrimPrefix(text, "\ufeff"))
	load := func(text string) (*Config, error) {
		l := loader{names: []string{"f"}}
		file, err := parseFile("f", text)
		if err != nil {
			return nil, err
		}
		l.files = append(l.files, file)
		return l.config(Dirs{Config: "/none"})
	}
	c, err := load(text)
	if err != nil {
		var problems Problems
		if !errors.As(err, &problems) {
			t.Fatalf("not a Problem: %v", err)
		}
		for _, p := range problems {
			if lines := strings.Count(text, "\n") + 1; p.Where.Line > lines || p.Text == "" || strings.ContainsAny(p.Text, "\n\x1b") {
				t.Errorf("%q, in a file of %d lines", p, lines)
			}
		}
		return
	}
	c.Warnings(c.VMs, now)
	var shown bytes.Buffer
	if err := c.Write(&shown, now); err != nil {
		t.Fatal(err)
	}
	again, err := load(shown.String())
	if err != nil {
		t.Fatalf("what is shown is not loaded: %v\n%s", err, shown.String())
	}
	if a, b := meaning(t, c), meaning(t, again); a != b {
		t.Errorf("shown:\n%s\ngot  %s\nwant %s", shown.String(), b, a)
	}
}

// The VMs of a command are those of cairn serve: of files, of tables, and discovered.
func TestFindVMs(t *testing.T) {
	d := folder(t, map[string]string{"cairn.toml": "[vm.tabled]\nqmp = \"/run/tabled.qmp\"\n[discover.kvm]\nlibvirt = \"qemu:///system\"\nexclude = [\"vdb\"]\nexcept = [\"secret\"]\n",
		"vms.d/filed.toml": "name = \"filed\"\nqmp = \"/run/filed.qmp\"\n"})
	asked := 0
	domains := func(context.Context, string) ([]string, error) {
		asked++
		return []string{"found", "more", "secret"}, nil
	}
	list, err := d.FindVMs(t.Context(), []string{"tabled", "filed"}, domains)
	if err != nil || len(list) != 2 || asked != 0 {
		t.Fatalf("%+v, %v; libvirt was asked %d times", list, err, asked)
	}
	list, err = d.FindVMs(t.Context(), []string{"filed", "found", "more"}, domains)
	if err != nil || len(list) != 3 || list[1].Libvirt != "qemu:///system" || list[1].Domain != "found" || !slices.Equal(list[2].Exclude, []string{"vdb"}) || asked != 1 {
		t.Errorf("%+v, %v; libvirt was asked %d times", list, err, asked)
	}
	for _, name := range []string{"nowhere", "secret"} {
		if _, err = d.FindVMs(t.Context(), []string{name}, domains); !errors.Is(err, ErrUnknownVM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = d.FindVMs(t.Context(), []string{"found"}, func(context.Context, string) ([]string, error) { return nil, errors.New("no socket") })
	if !errors.Is(err, ErrUnknownVM) || !strings.Contains(err.Error(), "discover kvm") || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("libvirt does not answer: %v", err)
	}
}
