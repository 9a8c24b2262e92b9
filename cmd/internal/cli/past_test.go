package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cairn/guest/filesystem/filesystemtest"
)

// guestImage is an ext4 image that debugfs changes between points.
type guestImage struct {
	t    *testing.T
	path string
}

func newGuestImage(t *testing.T) guestImage {
	t.Helper()
	filesystemtest.NeedTool(t, "mke2fs")
	filesystemtest.NeedTool(t, "debugfs")
	g := guestImage{t, filepath.Join(t.TempDir(), "img")}
	if err := os.WriteFile(g.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(g.path, 8<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-F", g.path).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	return g
}

// write puts a file into the image; what was there goes.
func (g guestImage) write(name, contents, mtime string) {
	g.t.Helper()
	from := filepath.Join(g.t.TempDir(), "from")
	if err := os.WriteFile(from, []byte(contents), 0o644); err != nil {
		g.t.Fatal(err)
	}
	g.run("rm "+name, "write "+from+" "+name, "set_inode_field "+name+" mtime "+mtime)
}

func (g guestImage) run(commands ...string) {
	g.t.Helper()
	script := filepath.Join(g.t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		g.t.Fatal(err)
	}
	if out, err := exec.Command("debugfs", "-w", "-f", script, g.path).CombinedOutput(); err != nil {
		g.t.Fatalf("debugfs: %v\n%s", err, out)
	}
}

func (g guestImage) bytes() []byte {
	b, err := os.ReadFile(g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// pastHost has four points of web01, the first three days apart, and one of
// web02.
func pastHost(t *testing.T) *host {
	h := newHost(t)
	h.must(exitOK, "init")
	g := newGuestImage(t)
	point := 0
	add := func() {
		h.addPoint(g.bytes(), time.Date(2026, 10, 1+point, 2, 0, 0, 0, time.UTC))
		point++
	}
	g.run("mkdir /etc", "mkdir /old", "symlink /conf etc")
	g.write("/etc/app.conf", "one\n", "20260901000000")
	g.write("/old/kept.txt", "kept", "20260901000000")
	g.write("/old/\x1b[2Jevil", "x", "20260901000000")
	add()
	g.write("/etc/app.conf", "one\n", "20260902000000") // other times, the same contents
	add()
	g.write("/etc/app.conf", "two!\n", "20260903000000")
	g.write("/etc/new.conf", strings.Repeat("n", 3000), "20260903000000")
	add()
	g.run("rm /etc/app.conf")
	add()
	return h
}

func TestFindLogDiff(t *testing.T) {
	h := pastHost(t)
	out, errs := h.must(exitOK, "find", "web01", "*.conf")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 5 || !strings.Contains(lines[0], "PATH") {
		t.Fatalf("find:\n%s", out)
	}
	if f := strings.Fields(lines[3]); len(f) != 9 || f[0] != "web01" || f[1] != "f" || f[2] != "5" || f[5] != "1" || f[6] != "2026-10-03T02-00-00Z" || f[8] != "/etc/app.conf" {
		t.Errorf("columns: %q", f)
	}
	command := regexp.MustCompile(`cairn restore (\S+) --to FOLDER`).FindStringSubmatch(errs)
	if len(command) == 0 {
		t.Fatalf("no word of how to get a version back: %s", errs)
	}
	to := t.TempDir()
	h.must(exitOK, "restore", command[1], "--to", to)
	if b, err := os.ReadFile(filepath.Join(to, "new.conf")); err != nil || len(b) != 3000 {
		t.Errorf("restored %d bytes, %v", len(b), err)
	}
	if out, _ := h.must(exitOK, "find", "*evil"); strings.Contains(out, "\x1b") || !strings.Contains(out, `"/old/\x1b[2Jevil"`) {
		t.Errorf("a hostile name: %q", out)
	}
	for _, c := range []struct {
		argv []string
		want string // of paths
	}{
		{[]string{"--size", "+1K"}, "/etc/new.conf"},
		{[]string{"--size", "-5", "--path", "/etc"}, "/etc/app.conf /etc/app.conf"},
		{[]string{"--point", "web01@2026-10-03", "--path", "/conf"}, "/etc/app.conf /etc/new.conf"},
		{[]string{"--until", "2026-10-01", "--type", "f", "--path", "etc"}, "/etc/app.conf"},
		{[]string{"--newer", "2026-09-03", "--type", "f"}, "/etc/app.conf /etc/new.conf"},
		{[]string{"--older", "2026-09-02", "--path", "/etc"}, "/etc/app.conf /etc/app.conf"},
		{[]string{"--type", "l"}, "/conf"},
	} {
		out, _ := h.must(exitOK, append([]string{"find", "web01", "*", "--json"}, c.argv...)...)
		var paths []string
		for line := range strings.Lines(out) {
			var f foundJSON
			if err := json.Unmarshal([]byte(line), &f); err != nil || f.Type != "found" || f.VM != "web01" || !strings.HasPrefix(f.Restore, "web01@2026-") {
				t.Fatalf("%v: %s (%v)", c.argv, line, err)
			}
			paths = append(paths, f.Path)
		}
		if got := strings.Join(paths, " "); got != c.want {
			t.Errorf("find %v: %s, want %s", c.argv, got, c.want)
		}
	}
	if out, errs := h.must(exitFailed, "find", "web01", "nonsense"); out != "" || !strings.Contains(errs, "nothing found in 4 points") {
		t.Errorf("find of nothing: %q %q", out, errs)
	}
	h.must(exitFailed, "find", "web01", "*", "--until", "2020-01-01")
	for _, argv := range [][]string{{"web99", "*"}, {"web01", "["}, {"web01", "*", "--size", "x"}, {"web01", "*", "--type", "q"}, {"web01", "*", "--since", "soon"}, {"web01", "*", "--size", "-0"}} {
		h.must(exitUsage, append([]string{"find"}, argv...)...)
	}

	out, errs = h.must(exitOK, "log", "web01:/conf/app.conf")
	var kinds []string
	for _, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
		kinds = append(kinds, strings.Join(strings.Fields(line)[:2], " "))
	}
	if got := strings.Join(kinds, ", "); got != "2026-10-04T02-00-00Z removed, 2026-10-03T02-00-00Z contents, 2026-10-02T02-00-00Z metadata, 2026-10-01T02-00-00Z oldest" {
		t.Errorf("log: %s\n%s", got, out)
	}
	if !strings.Contains(errs, "cairn restore web01@2026-10-03T02-00-00Z:/conf/app.conf --to") {
		t.Errorf("log says: %s", errs)
	}
	if out, _ := h.must(exitOK, "log", "web01:/etc/app.conf", "--json", "--no-compare", "--since", "2026-10-02", "--until", "2026-10-02"); !strings.Contains(out, `"change":"contents"`) || strings.Count(out, "\n") != 1 {
		t.Errorf("log --json: %s", out)
	}
	h.must(exitUsage, "log", "web01:/etc/none")
	h.must(exitUsage, "log", "web01")
	h.must(exitUsage, "log", "web99:/etc")

	out, _ = h.must(exitOK, "diff", "web01")
	if out != "- /etc/app.conf\n" {
		t.Errorf("diff: %q", out)
	}
	out, _ = h.must(exitOK, "diff", "web01@2026-10-01", "web01@2026-10-03", "/etc")
	if out != "M /etc/app.conf (contents,times)\n+ /etc/new.conf\n" {
		t.Errorf("diff of two: %q", out)
	}
	out, _ = h.must(exitOK, "diff", "web01@2026-10-01", "web01@2026-10-02", "--compare")
	if out != "M /etc/app.conf (times)\n" {
		t.Errorf("diff --compare: %q", out)
	}
	out, _ = h.must(exitOK, "diff", "web01@latest~3", "web01@latest", "--stat")
	if f := strings.Fields(strings.Split(out, "\n")[1]); strings.Join(f, " ") != "1 1 0 0 3000 4 /etc" {
		t.Errorf("diff --stat: %s", out)
	}
	if out, _ := h.must(exitOK, "diff", "web01", "--json"); !strings.Contains(out, `"op":"-"`) || !strings.Contains(out, `"size_before":5`) {
		t.Errorf("diff --json: %s", out)
	}
	if out, errs := h.must(exitOK, "diff", "web01", "web01"); out != "" || !strings.Contains(errs, "no file differs") {
		t.Errorf("diff of one point: %q %q", out, errs)
	}
	h.must(exitUsage, "diff", "web01@2026-10-01")
}

// Stored catalogues and walked points give the same answers, and a stored one
// that lacks is told of.
func TestQuestionsOnStoredCatalogues(t *testing.T) {
	h := pastHost(t)
	questions := [][]string{{"find", "web01", "*"}, {"log", "web01:/etc/app.conf"}, {"diff", "web01@latest~3", "web01"}}
	var walked []string
	for _, q := range questions {
		out, errs := h.must(exitOK, q...)
		if !strings.Contains(errs, "has no catalogue of files") {
			t.Errorf("%v says nothing of points without a catalogue: %s", q, errs)
		}
		walked = append(walked, out)
	}
	h.must(exitOK, "catalogue", "--all")
	for i, q := range questions {
		out, errs := h.must(exitOK, q...)
		if out != walked[i] || strings.Contains(errs, "catalogue") {
			t.Errorf("%v with stored catalogues:\n%s%s\nwithout:\n%s", q, out, errs, walked[i])
		}
	}
}

// Completion offers what there is, once.
func TestQuestionsComplete(t *testing.T) {
	h := pastHost(t)
	h.must(exitOK, "vm", "add", "web01", "--qmp", "/nonexistent")
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{"find", ""}, "web01\n"}, {[]string{"log", ""}, "web01:\n"}, {[]string{"diff", "web01@latest", "web01@2026-10-0"}, "web01@2026-10-04T02-00-00Z\n"},
		{[]string{"find", "--point", "web01@l"}, "web01@latest\n"},
	} {
		if out, _ := h.must(exitOK, append([]string{"__complete"}, c.argv...)...); !strings.Contains(out, c.want) {
			t.Errorf("%v: %s", c.argv, out)
		}
	}
	if out, _ := h.must(exitOK, "__complete", "find", "web01", ""); strings.Contains(out, "web01") {
		t.Errorf("a pattern is completed: %s", out)
	}
}

func TestQuotedForAShell(t *testing.T) {
	for _, word := range []string{"plain/path.txt", "with space", "it's", "a\nb'\\c\x1b\xff\u0085", "$HOME `id`", ""} {
		out, err := exec.Command("bash", "-c", "printf %s "+quoted(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q is written %s and read %q (%v)", word, quoted(word), out, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string][2]int64{"": {0, 0}, "+10M": {10<<20 + 1, 0}, "-1k": {0, 1024}, "0": {0, 1}, "2G": {2 << 30, 2<<30 + 1}, "-1": {0, 1}} {
		if lo, below, err := parseSize(text); err != nil || [2]int64{lo, below} != want {
			t.Errorf("%q: %d %d %v, want %v", text, lo, below, err, want)
		}
	}
	for _, text := range []string{"M", "+-1", "1e9", "9999999999T", "-0", "10Q"} {
		if _, _, err := parseSize(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
