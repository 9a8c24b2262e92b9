//go:build linux

package discover

import (
	"context"
	"encoding/binary"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"cairn/guest/object"
)

func TestPostgreSQLValues(t *testing.T) {
	got := pgConf("a = 'it''s'\nB 10MB#x\nc='a\\'b\\\\c\\x\\101\\tz' # tail\n d.e=on\n#f=1\n=g\ninclude 'x y'\nlast='open")
	want := [][2]string{{"a", "it's"}, {"b", "10MB"}, {"c", "a'b\\cxA\tz"}, {"d.e", "on"}, {"include", "x y"}, {"last", "open"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMySQLOptions(t *testing.T) {
	got := myCnf("[mysqld]\nskip-networking\nloose-innodb_x = \"a # b\"\nport=1 # c\n;x=1\n!includedir /etc/d\n[ mysqld_safe ]\ny='z\n")
	want := []option{{"mysqld", "skip_networking", ""}, {"mysqld", "innodb_x", "a # b"}, {"mysqld", "port", "1"}, {"!", "includedir", "/etc/d"}, {" mysqld_safe ", "y", "'z"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWords(t *testing.T) {
	for line, want := range map[string][]string{
		`requirepass "a b"`: {"requirepass", "a b"}, `save ""`: {"save", ""}, `a 'b\' c`: {"a", `b\`, "c"}, `x"y z"w`: {"xy zw"},
		`a\ b c`: {"a b", "c"}, "": nil, `"open`: {"open"}, `\`: {`\`},
	} {
		if got := words(line); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestNginxTokens(t *testing.T) {
	n := nginxTokens{text: "a b; c { # x } ;\n \"d ;\" 'e\\'f' ${g};} h"}
	var got []string
	for {
		d, end := n.directive()
		if len(d) == 0 && end == 0 {
			break
		}
		got = append(got, strings.Join(d, "|")+string(rune(end)))
	}
	if want := []string{"a|b;", "c{", "d ;|e'f|${g};", "}", "h\x00"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAssignments(t *testing.T) {
	got := assignments("A=1\nB=\"x \\\"y\\\"\"\nC='a b' # c\n# D=1\nexport E=e#e\n F = 1\n=g\nH=\\$x;y\n")
	want := map[string]string{"A": "1", "B": `x "y"`, "C": "a b", "E": "e#e", "H": "$x"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUnescape(t *testing.T) {
	for s, want := range map[string]string{`a\040b`: "a b", `\134`: `\`, `\9`: `\9`, `x\04`: `x\04`, `\777`: `\777`, "plain": "plain"} {
		if got := Unescape(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func TestOtherPackageManagers(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []Package
	}{
		"apk":    {map[string]string{"lib/apk/db/installed": "C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\n\nP:busybox\nV:1.36\nA:x86_64\n"}, []Package{{"musl", "1.2.5-r0", "x86_64"}, {"busybox", "1.36", "x86_64"}}},
		"pacman": {map[string]string{"var/lib/pacman/local/gcc-libs-13.2.1-3/": "", "var/lib/pacman/local/ALPM_DB_VERSION": ""}, []Package{{"gcc-libs", "13.2.1-3", ""}}},
		"dpkg":   {map[string]string{"var/lib/dpkg/status.d/base": "Package: base-files\nVersion: 12\nArchitecture: all\n", "var/lib/dpkg/status.d/base.md5sums": "x"}, []Package{{"base-files", "12", "all"}}},
	} {
		p, err := Installed(context.Background(), root(t, tree(t, c.files)))
		if err != nil || p == nil || p.Manager != name || !slices.Equal(p.List, c.want) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestGlob(t *testing.T) {
	r := root(t, tree(t, map[string]string{"a/x.conf": "", "a/.h.conf": "", "a/y.txt": "", "b/c/x.conf": "", "b/d": "→c", "w[1]/f": ""}))
	for pattern, want := range map[string][]string{
		"/a/*.conf": {"/a/x.conf"}, "/*/x.conf": {"/a/x.conf", "/b/x.conf", "/w[1]/x.conf"}, "/b/*/x*": {"/b/c/x.conf", "/b/d/x.conf"},
		"/a/.*": {"/a/.h.conf"}, `/w\[1\]/f`: {"/w[1]/f"}, "/none/*": nil, "/a/[": nil, "/a/../b": {"/b"},
	} {
		s := look(r)
		if got := s.glob(context.Background(), pattern); !slices.Equal(got, want) || s.err() != nil {
			t.Errorf("%s: %q, %v; want %q", pattern, got, s.err(), want)
		}
	}
}

// TestPlace: what would put back more than the object is refused, and said.
func TestPlace(t *testing.T) {
	var o object.Object
	for _, at := range []string{"/data", "/data", "/data2", "/", "/etc", "/var/lib", "relative", "/un/../clean", "/nul\x00", ""} {
		place(&o, "da/ta", at)
	}
	if want := []object.Path{{Role: "da_ta", Path: "/data"}, {Role: "da_ta-2", Path: "/data2"}}; !reflect.DeepEqual(o.Paths, want) {
		t.Errorf("%+v", o.Paths)
	}
	if left, _ := o.Details["left_out"].([]string); len(left) != 3 {
		t.Errorf("left out: %q", left)
	}
	taken := map[string]bool{}
	long := strings.Repeat("ü", 127)
	for _, want := range []string{"containers/a", "containers/a@anna", "containers/a@anna-2", "containers/a@anna-3"} {
		if got := free(taken, "containers/a", "anna"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for range 12 {
		if n := free(taken, "containers/"+object.PartOf(long), long); object.CheckName(n) != nil {
			t.Errorf("%q is no name", n)
		}
	}
}

// fuzzed is a guest whose every file has the same contents, and whose every
// directory the same names in it.
type fuzzed struct {
	content []byte
	names   []string
}

func (f fuzzed) ReadFile(name string, limit int64) ([]byte, error) {
	if int64(len(f.content)) > limit {
		return nil, ErrTooLarge
	}
	return f.content, nil
}
func (f fuzzed) ReadDir(name string, limit int) ([]string, error) {
	if len(name) > 200 {
		return nil, nil
	}
	return f.names[:min(len(f.names), limit)], nil
}
func (f fuzzed) Stat(name string) (Info, error) {
	base := path.Base(name)
	return Info{Dir: !strings.Contains(base, ".") && base != "PG_VERSION", Size: int64(len(f.content)), Path: path.Clean(name)}, nil
}

// FuzzDocument gives what a file may hold to every parser at once. Whatever it
// is, the result must be a document.
func FuzzDocument(f *testing.F) {
	for name, content := range debian() {
		f.Add([]byte(content), path.Base(name))
	}
	for name, content := range dockerHost() {
		f.Add([]byte(content), path.Base(name))
	}
	f.Add(controlFile(binary.BigEndian, 960), "1")
	f.Add([]byte("0"), strings.Repeat("x", object.MaxName)) // a name that is too long with what goes before it
	f.Add([]byte("port 0\ndir /x\n"), strings.Repeat("x", object.MaxName-5)+".conf")
	f.Add([]byte("15\n"), "main\npg.conf\na b\n\xff")
	f.Add([]byte(`[{"id":"a","names":["b"],"layer":"c","parent":"a","metadata":"{}"}]`), "overlay-containers\nx")
	f.Fuzz(func(t *testing.T, content []byte, text string) {
		var list []string
		for n := range strings.SplitSeq(text, "\n") {
			if n != "" && len(list) < 3 && !strings.Contains(n, "/") {
				list = append(list, n)
			}
		}
		encode(t, Document(context.Background(), fuzzed{content, list}, crash))
	})
}

func FuzzControl(f *testing.F) {
	for _, version := range []uint32{942, 1002, 1300, 1800} {
		f.Add(controlFile(binary.LittleEndian, version)[:ControlSize])
		f.Add(controlFile(binary.BigEndian, version)[:ControlSize])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseControl(b)
		if err == nil && (c.State == "" || c.Version < versionOldest) {
			t.Errorf("believed %+v", c)
		}
		if len(b) >= ControlSize { // and with a check sum that fits
			b = append([]byte(nil), b[:ControlSize]...)
			if _, err := ParseControl(resum(b)); err == nil {
				o := object.Object{Name: "x", Consistency: crash, Details: c.Details()}
				encode(t, &object.Document{Version: 1, Objects: []object.Object{o}})
			}
		}
	})
}
