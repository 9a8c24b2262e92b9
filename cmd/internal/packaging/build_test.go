package packaging

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/integration/lab/product"
)

// needs skips a test where a tool of Debian's is missing.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	for _, name := range tools {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

// tool runs a program and gives what it says.
func tool(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// binaries gives a folder with both programs, links to those of TestMain.
func binaries(t *testing.T) string {
	t.Helper()
	dir, from := t.TempDir(), filepath.Dir(os.Getenv(product.Env))
	for _, name := range []string{"cairn", "cairn-agent"} {
		if err := os.Symlink(filepath.Join(from, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// pack builds a package ("host", "agent") of a version, and gives its file.
// Compressing it as for a release would take most of the tests' time.
func pack(t *testing.T, which, version string, env ...string) string {
	t.Helper()
	needs(t, "dpkg-deb")
	cmd := exec.CommandContext(t.Context(), "../../../.ci/deb-"+which, binaries(t))
	cmd.Env = append(append(os.Environ(), "DEB_COMPRESS=-Znone", "DEB_VERSION="+version), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("deb-%s: %v\n%s", which, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// once has the packages that several tests look at.
var once = map[string]func(*testing.T) ([]byte, string){"host": packOnce("host"), "agent": packOnce("agent")}

func packOnce(which string) func(*testing.T) ([]byte, string) {
	var content []byte
	var name string
	return func(t *testing.T) ([]byte, string) {
		t.Helper()
		if content == nil {
			file := pack(t, which, "1.0")
			var err error
			if content, err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
			name = filepath.Base(file)
		}
		return content, name
	}
}

// version1 gives a file of version 1.0 of a package.
func version1(t *testing.T, which string) string {
	t.Helper()
	content, name := once[which](t)
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// unpack gives a folder with what a package brings.
func unpack(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	tool(t, "dpkg-deb", "-x", file, dir)
	return dir
}

// The same input gives the same bytes, whoever builds it: with another umask,
// another folder for what is temporary, another language and another time zone.
func TestReproducible(t *testing.T) {
	for _, which := range []string{"host", "agent"} {
		first, _ := once[which](t)
		old := syscall.Umask(0o077)
		file := pack(t, which, "1.0", "TMPDIR="+t.TempDir(), "TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "CAIRN_REPOSITORY=/secret/of/who/builds", "CAIRN_PASSWORD_FILE=/secret")
		syscall.Umask(old)
		second, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			t.Errorf("%s: the same input gives another package (%d and %d bytes)", which, len(first), len(second))
		}
	}
}

// Two clones of the commit, in two folders, give the same packages, as a
// release is built. Behind CAIRN_LONG: it compresses, and may compile all.
func TestReproducibleFromClones(t *testing.T) {
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("builds both packages twice from clones; with CAIRN_LONG=1")
	}
	needs(t, "dpkg-deb", "git", "make")
	var built [2]map[string][]byte
	for i, name := range []string{"one", "another/below"} {
		dir := filepath.Join(t.TempDir(), name)
		top := strings.TrimSpace(tool(t, "git", "rev-parse", "--show-toplevel"))
		tool(t, "git", "clone", "-q", top, dir)
		tool(t, "make", "-C", dir, "deb")
		files, err := filepath.Glob(filepath.Join(dir, "bin", "*.deb"))
		if err != nil || len(files) != 2 {
			t.Fatalf("packages: %v, %v", files, err)
		}
		built[i] = map[string][]byte{}
		for _, f := range files {
			if built[i][filepath.Base(f)], err = os.ReadFile(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, b := range built[0] {
		if !bytes.Equal(b, built[1][name]) {
			t.Errorf("%s: two clones of one commit give %d and %d bytes that differ", name, len(b), len(built[1][name]))
		}
		t.Logf("%s: %d bytes, twice the same", name, len(b))
	}
}

// The list of modules has each that the program was linked with, and the
// licences each that the list has.
func TestModulesAreListed(t *testing.T) {
	for which, program := range map[string]string{"host": "usr/bin/cairn", "agent": "usr/sbin/cairn-agent"} {
		dir := unpack(t, version1(t, which))
		info, err := buildinfo.ReadFile(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		doc := filepath.Join(dir, "usr/share/doc", filepath.Base(program))
		b, err := os.ReadFile(filepath.Join(doc, "sbom.cdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			BOMFormat, SpecVersion string
			Metadata               struct {
				Component struct{ Name, Version string }
			}
			Components []struct{ Type, Name, Version, PURL string }
		}
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		if list.BOMFormat != "CycloneDX" || list.SpecVersion != "1.5" || list.Metadata.Component.Name != filepath.Base(program) || list.Metadata.Component.Version != "1.0" {
			t.Errorf("%s: %.300s", which, b)
		}
		has := map[string]bool{}
		for _, c := range list.Components {
			if c.Type != "library" || !strings.HasPrefix(c.PURL, "pkg:golang/") {
				t.Errorf("%s: %+v", which, c)
			}
			has[c.Name+" "+c.Version] = true
		}
		licenses := tool(t, "zcat", filepath.Join(doc, "licenses.gz"))
		for _, m := range info.Deps {
			if !has[m.Path+" "+m.Version] {
				t.Errorf("%s: %s %s is in the program and not in the list", which, m.Path, m.Version)
			}
			if !strings.Contains(licenses, "\n"+m.Path+" "+m.Version+", ") {
				t.Errorf("%s: no licence of %s", which, m.Path)
			}
		}
		if !has["std "+strings.TrimPrefix(info.GoVersion, "go")] || len(list.Components) != len(info.Deps)+1 || len(info.Deps) < 3 {
			t.Errorf("%s: %d modules in the program, %d in the list, Go's among them: %v", which, len(info.Deps), len(list.Components), has["std "+strings.TrimPrefix(info.GoVersion, "go")])
		}
	}
}
