package packaging

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// pages gives the manual pages of a package, unpacked, at least so many.
func pages(t *testing.T, dir string, atLeast int) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "usr/share/man/man[17]/*.gz"))
	if err != nil || len(list) < atLeast {
		t.Fatalf("%d pages, %v", len(list), err)
	}
	for i, f := range list {
		tool(t, "gunzip", f)
		list[i] = strings.TrimSuffix(f, ".gz")
	}
	return list
}

// Manual pages render without a warning, by whatever judge is installed, have
// the sections that readers look for, and name only pages that exist.
func TestManualPages(t *testing.T) {
	dir := unpack(t, version1(t, "host"))
	list := append(pages(t, dir, 50), pages(t, unpack(t, version1(t, "agent")), 5)...)
	judges := [][]string{{"groff", "-man", "-ww", "-z", "-Tutf8", "-Kutf8"}, {"mandoc", "-Tlint", "-Wwarning"}, {"lexgrog"}}
	have := 0
	for _, judge := range judges {
		if _, err := exec.LookPath(judge[0]); err != nil {
			t.Logf("%s is not installed: it judges nothing", judge[0])
			continue
		}
		have++
		out, err := exec.CommandContext(t.Context(), judge[0], append(judge[1:], list...)...).CombinedOutput()
		if err != nil || judge[0] != "lexgrog" && len(out) > 0 {
			t.Errorf("%s: %v\n%.2000s", judge[0], err, out)
		}
	}
	if have == 0 {
		t.Log("no judge is installed (groff-base, mandoc, man-db)")
	}
	exists := map[string]bool{}
	for _, f := range list {
		name := filepath.Base(f) // cairn-gc.1
		exists[strings.TrimSuffix(name, filepath.Ext(name))+"("+filepath.Ext(name)[1:]+")"] = true
	}
	for _, f := range list {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		sections := []string{"NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"}
		if strings.HasSuffix(f, ".7") {
			sections = []string{"NAME", "DESCRIPTION", "SEE ALSO"}
		}
		for _, section := range sections {
			if !strings.Contains(string(b), "\n.SH "+section+"\n") {
				t.Errorf("%s has no %s", filepath.Base(f), section)
			}
		}
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, `.BR "`); ok {
				name, section, _ := strings.Cut(name, `"`)
				name = strings.ReplaceAll(name, `\-`, "-") + strings.Trim(section, ", \n")
				if !exists[name] {
					t.Errorf("%s names %s, which does not exist", filepath.Base(f), name)
				}
			}
		}
	}
	for _, f := range list {
		if filepath.Base(f) != "cairn-backup.1" {
			continue
		}
		b, _ := os.ReadFile(f)
		for _, words := range []string{`.B "\-\-every\-block"`, "CAIRN_REPOSITORY", "damage found", `.BR "cairn" (1)`, ".SH OPTIONS OF ALL COMMANDS"} {
			if !strings.Contains(string(b), words) {
				t.Errorf("cairn-backup(1) has no %s", words)
			}
		}
	}
}

// Systemd knows every setting of the units, and what they run is what the
// package brings.
func TestUnitsVerify(t *testing.T) {
	needs(t, "systemd-analyze")
	root := unpack(t, version1(t, "host"))
	tool(t, "install", "-d", filepath.Join(root, "run"), filepath.Join(root, "usr/lib/systemd/system"))
	units := func() []string {
		list, err := filepath.Glob(filepath.Join(root, "lib/systemd/system/*"))
		if err != nil || len(list) != 9 {
			t.Fatalf("units: %v, %v", list, err)
		}
		return list
	}
	dir := t.TempDir()
	for _, u := range units() {
		b, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		// The program is not installed here, and neither are its pages.
		text := strings.ReplaceAll(string(b), "/usr/bin/cairn", filepath.Join(root, "usr/bin/cairn"))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(u)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(name string) string {
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", filepath.Join(dir, name))
		out, err := cmd.CombinedOutput()
		if err != nil && len(out) == 0 {
			return err.Error()
		}
		return string(out)
	}
	for _, name := range []string{"cairn-backup@web01.service", "cairn-backup@web01.timer", "cairn-check.service", "cairn-check.timer", "cairn-gc.service", "cairn-gc.timer",
		"cairn.service", "cairn-once.service", "cairn-once.timer"} {
		if out := verify(name); out != "" {
			t.Errorf("%s: %s", name, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "wrong.service"), []byte("[Service]\nType=oneshot\nExecStart=/nowhere/cairn\nProtectSytem=strict\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := verify("wrong.service"); !strings.Contains(out, "ProtectSytem") || !strings.Contains(out, "/nowhere/cairn") {
		t.Errorf("the judge sees nothing wrong in a wrong unit: %q", out)
	}
}

// maxExposure is how open a service may be by systemd's own judgement, 0 to 100:
// those that touch QEMU's files and any user's disks cannot be closed further.
const maxExposure = 45

// The services are closed as far as their work lets them be.
func TestUnitsAreClosed(t *testing.T) {
	needs(t, "systemd-analyze")
	for _, name := range []string{"cairn.service", "cairn-once.service", "cairn-gc.service", "cairn-check.service"} {
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=yes", "--threshold="+strconv.Itoa(maxExposure), filepath.Join("host", name)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	for _, words := range []string{"KillMode=process", "OOMPolicy=continue", "NoNewPrivileges=yes", "SystemCallFilter=@system-service"} {
		for _, name := range []string{"cairn.service", "cairn-once.service"} {
			if b, err := os.ReadFile(filepath.Join("host", name)); err != nil || !strings.Contains(string(b), "\n"+words+"\n") {
				t.Errorf("%s has no %s: %v", name, words, err)
			}
		}
	}
}

// The conffile, which may name secrets, is root's alone; programs are
// executable; nothing can be written by others.
func TestModes(t *testing.T) {
	root := unpack(t, version1(t, "host"))
	for name, want := range map[string]fs.FileMode{"etc/cairn": 0o700, "etc/cairn/environment": 0o600, "usr/bin/cairn": 0o755, "lib/systemd/system/cairn-gc.timer": 0o644,
		"usr/share/bash-completion/completions/cairn": 0o644, "usr/share/zsh/vendor-completions/_cairn": 0o644, "usr/share/fish/vendor_completions.d/cairn.fish": 0o644,
		"usr/share/doc/cairn/examples/cairn.rules.yml": 0o644, "usr/share/doc/cairn/examples/dashboard.json": 0o644} {
		st, err := os.Stat(filepath.Join(root, name))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", name, st, err, want)
		}
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s: %v", path, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
