package webdav

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestTheTreeIsTheMounts: an ext4 disk in a real repository; each file of the guest
// is there with its contents, and what else a point has.
func TestTheTreeIsTheMounts(t *testing.T) {
	img, dir := guest(t)
	f := newFolder(t)
	f.add("web01", img, noon)
	f.add("web01", img, noon.Add(time.Hour))
	f.add("db/../01", img, noon)
	s := serve(t, newHandler(f, Options{Prefix: prefix}))
	names := func(path string) string { return strings.Join(slices.Sorted(maps.Keys(s.ls(path))), " ") }
	for path, want := range map[string]string{
		"/": "main", "/main": "db%2F..%2F01 web01", "/main/web01/": "2026-10-12T12-00-00Z 2026-10-12T13-00-00Z history latest",
		"/main/web01/latest": "apps changes disks fs machine point.json volumes", "/main/web01/2026-10-12T12-00-00Z/disks": "vda.raw",
		"/main/web01/latest/machine": "domain.xml", "/main/web01/latest/volumes": "vda-ext4", "/main/web01/latest/apps": "",
	} {
		if got := names(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	seen := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(name, "/evil/") {
			return err
		}
		want, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		seen++
		below := strings.TrimPrefix(name, dir)
		for _, root := range []string{"/main/web01/latest/fs", "/main/web01/2026-10-12T12-00-00Z/volumes/vda-ext4", "/main/db%2F..%2F01/latest/fs"} {
			if code, body := s.get(root + below); code != 200 || body != string(want) {
				t.Errorf("%s%q: %d, %d bytes, want %d", root, below, code, len(body), len(want))
			}
		}
		if size, listed := s.ls("/main/web01/latest/fs" + filepath.Dir(below))[filepath.Base(below)]; !listed || size != int64(len(want)) {
			t.Errorf("%q is listed with %d bytes: %v", below, size, listed)
		}
		return nil
	})
	if err != nil || seen < 15 {
		t.Fatal(seen, err)
	}
	for path, want := range map[string]string{
		"/main/web01/latest/machine/domain.xml": "<domain/>\n", "/main/web01/latest/disks/vda.raw": string(img),
	} {
		if code, body := s.get(path); code != 200 || body != want {
			t.Errorf("%s: %d, %d bytes", path, code, len(body))
		}
	}
	if code, body := s.get("/main/web01/latest/point.json"); code != 200 || !strings.Contains(body, `"problems": []`) {
		t.Errorf("point.json: %d %s", code, body)
	}
	for _, path := range []string{"/other", "/..%2Fevil", "/main/none", "/main/web01/latest/fs/none", "/main/web01/latest/fs/etc/hostname/x", "/main/web01/2020-01-01T00-00-00Z", "/main/\x00"} {
		if code, _ := s.get(path); code != 404 {
			t.Errorf("GET %q: %d", path, code)
		}
		if answer, _, err := s.do("PROPFIND", path, "Depth", "1"); err != nil || answer.StatusCode != 404 {
			t.Errorf("PROPFIND %q: %v %v", path, answer, err)
		}
	}
	// Names that no filesystem has are damage: the folder is not listed without them.
	if answer, body, err := s.do("PROPFIND", "/main/web01/latest/fs/evil", "Depth", "1"); err != nil || answer.StatusCode != 500 || !bytes.Contains(body, []byte("damaged")) {
		t.Errorf("a damaged folder: %v %v %s", answer, err, body)
	}
	for _, name := range []string{"../../etc/passwd.", "..%2F..%2Fetc%2Fpasswd.", "%2E%2E", "..", "nul%00is in the name"} {
		if code, body := s.get("/main/web01/latest/fs/evil/" + name); code == 200 {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	// Encoded in ways that are not ours.
	for _, address := range []string{"/dav/main/web01/latest/fs/evil/../etc/hostname", "/dav/main/web01/latest/fs/%65tc/hostname", "/dav/main%2Fweb01%2Flatest/fs/etc%2Fhostname"} {
		if answer, body, err := s.raw("GET", s.url+address); err != nil || answer.StatusCode >= 500 || answer.StatusCode == 200 && string(body) != "web01\n" {
			t.Errorf("%s: %v %v %s", address, answer, err, body)
		}
	}
	for _, path := range []string{"/dav/../evil", "/dav/main/../../evil", "/davx", "/other", "/dav/main/web01/latest/fs/../../../../evil"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path = path // as if nobody had cleaned it
		w := httptest.NewRecorder()
		if s.h.ServeHTTP(w, r); w.Code != 404 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	f.wantFree()
}

func TestLinksAreWhatTheyLeadTo(t *testing.T) {
	img, _ := guest(t)
	f := newFolder(t)
	f.add("web01", img, noon)
	s := serve(t, newHandler(f, Options{Prefix: prefix}))
	root := "/main/web01/latest/fs"
	for path, want := range map[string]string{
		"/bin/vim": "vim\n", "/usr/bin/editor": "vim\n", "/bin/editor": "vim\n", "/escape": "root:x:0:0::/root:/bin/sh\n", "/a/hop/file": "deep",
		"/x/back/c/file": "deep", "/a/b/c/other/back": "", "/dangling": "", "/a/ring1": "", "/a/self": "", "/a/b/up": "", "/a/b/top": "", "/x/back/c/other": "", "/self/FOLDER-IN-ITSELF": "",
	} {
		code, body := s.get(root + path)
		if want != "" && (code != 200 || body != want) || want == "" && code != 404 && code != 508 && code != 405 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	for path, want := range map[string]string{
		"/": "a bin escape etc evil lost+found odd self srv usr x", "/self": "", "/a": "b hop", "/a/b": "c", "/a/hop": "file other", "/x": "back", "/x/back": "c up", "/a/b/c/other": "", "/x/back/up": "hop",
	} {
		list := s.ls(root + path)
		delete(list, "file-link") // a file and a slash: Linux says it is none
		if got := strings.Join(slices.Sorted(maps.Keys(list)), " "); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	// A client that copies all comes to an end.
	folders := 0
	var walk func(path string, depth int)
	walk = func(path string, depth int) {
		if folders++; folders > 500 || depth > 30 {
			t.Fatalf("%d folders, and no end: %s", folders, path)
		}
		for name, size := range s.ls(path) {
			if size < 0 && name != "evil" {
				walk(path+"/"+name, depth+1)
			}
		}
	}
	walk(root, 0)
}

func TestNothingIsWritten(t *testing.T) {
	img, _ := guest(t)
	f := newFolder(t)
	f.add("web01", img, noon)
	s := serve(t, newHandler(f, Options{Prefix: prefix}))
	path := "/main/web01/latest/fs/etc/hostname"
	for _, method := range []string{"PUT", "POST", "DELETE", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "PROPPATCH", "PATCH", "REPORT", "SEARCH", "ACL", "TRACE", "X"} {
		for _, p := range []string{path, "/main/web01/latest/fs/new", "/", "/new"} {
			answer, _, err := s.do(method, p, "Destination", s.address("/main/web01/latest/fs/etc/other"), "Overwrite", "T")
			if err != nil || answer.StatusCode != http.StatusMethodNotAllowed || !strings.Contains(answer.Header.Get("Allow"), "PROPFIND") {
				t.Errorf("%s %s: %v %v", method, p, answer, err)
			}
		}
	}
	answer, _, err := s.do("OPTIONS", path)
	if err != nil || answer.StatusCode != 200 || answer.Header.Get("DAV") != "1" {
		t.Errorf("OPTIONS: %v %v", answer, err)
	}
	for _, depth := range []string{"infinity", "", "2", "-1"} {
		answer, body, err := s.do("PROPFIND", "/main", "Depth", depth)
		if err != nil || answer.StatusCode != http.StatusForbidden || !bytes.Contains(body, []byte("propfind-finite-depth")) {
			t.Errorf("Depth %q: %v %v %s", depth, answer, err, body)
		}
	}
	if answer, _, err = s.do("PROPFIND", path, "Depth", "0"); err != nil || answer.StatusCode != http.StatusMultiStatus {
		t.Errorf("Depth 0 of a file: %v %v", answer, err)
	}
	if code, _ := s.get("/main/web01/latest/fs/etc"); code != http.StatusMethodNotAllowed {
		t.Errorf("GET of a folder: %d", code)
	}
}

func TestRanges(t *testing.T) {
	img, dir := guest(t)
	f := newFolder(t)
	f.add("web01", img, noon)
	s := serve(t, newHandler(f, Options{Prefix: prefix}))
	big, err := os.ReadFile(filepath.Join(dir, "srv/big.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		path string
		all  []byte
	}{{"/main/web01/latest/fs/srv/big.bin", big}, {"/main/web01/latest/disks/vda.raw", img}} {
		for range 30 {
			from := random.IntN(len(one.all))
			to := from + random.IntN(min(len(one.all)-from, 700_000))
			answer, body, err := s.do("GET", one.path, "Range", fmt.Sprintf("bytes=%d-%d", from, to))
			if err != nil || answer.StatusCode != http.StatusPartialContent || !bytes.Equal(body, one.all[from:to+1]) {
				t.Fatalf("%s %d-%d: %v %v, %d bytes", one.path, from, to, answer, err, len(body))
			}
		}
		if answer, body, err := s.do("GET", one.path, "Range", "bytes=-100"); err != nil || !bytes.Equal(body, one.all[len(one.all)-100:]) {
			t.Errorf("the end: %v %v", answer, err)
		}
		if answer, _, err := s.do("GET", one.path, "Range", fmt.Sprintf("bytes=%d-", len(one.all))); err != nil || answer.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("past the end: %v %v", answer, err)
		}
		if answer, body, err := s.do("GET", one.path, "Range", "bytes=0-9,1000-1009"); err != nil || answer.StatusCode != 206 || !bytes.Contains(body, one.all[1000:1010]) {
			t.Errorf("two: %v %v", answer, err)
		}
	}
	path := "/main/web01/latest/fs/srv/page.html"
	answer, body, err := s.do("GET", path)
	if err != nil || answer.Header.Get("Content-Type") != "application/octet-stream" || !strings.Contains(answer.Header.Get("Content-Security-Policy"), "sandbox") ||
		answer.Header.Get("Content-Disposition") != "attachment" || answer.Header.Get("X-Content-Type-Options") != "nosniff" || len(body) == 0 {
		t.Errorf("a guest's page: %v %v", answer, err)
	}
	tag := answer.Header.Get("ETag")
	if answer, _, err = s.do("GET", path, "If-None-Match", tag); err != nil || answer.StatusCode != http.StatusNotModified {
		t.Errorf("If-None-Match %s: %v %v", tag, answer, err)
	}
	if answer, _, err = s.do("HEAD", path); err != nil || answer.StatusCode != 200 || answer.ContentLength != int64(len(body)) || answer.Header.Get("ETag") != tag {
		t.Errorf("HEAD: %v %v", answer, err)
	}
	f.add("web01", img, noon.Add(time.Hour))
	f.reopen()
	if answer, _, err = s.do("HEAD", path); err != nil || answer.Header.Get("ETag") == tag {
		t.Errorf("the same in another point has the same ETag: %v %v", answer, err)
	}
}

// TestDamage flips a byte of the largest pack, at one place after another. Whatever
// that hits, no file is given that is not the guest's, nor one that is short, without
// an error; and where it matters there is one.
func TestDamage(t *testing.T) {
	img, dir := guest(t)
	f := newFolder(t)
	f.add("web01", img, noon)
	packs, err := filepath.Glob(filepath.Join(f.path, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	largest := slices.MaxFunc(packs, func(a, b string) int { return int(size(t, a) - size(t, b)) })
	good, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	big, err := os.ReadFile(filepath.Join(dir, "srv/big.bin"))
	if err != nil {
		t.Fatal(err)
	}
	var reported sync.Map
	s := serve(t, newHandler(f, Options{Prefix: prefix, Report: func(err error) { reported.Store(err.Error(), true) }}))
	errors, cut, listings := 0, 0, 0
	for i := range 16 {
		bad := slices.Clone(good)
		bad[(2*i+1)*len(bad)/33] ^= 1
		if err := os.WriteFile(largest, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		f.reopen()
		for path, want := range map[string][]byte{"/main/web01/latest/fs/srv/big.bin": big, "/main/web01/latest/disks/vda.raw": img, "/main/web01/latest/fs/etc/hostname": []byte("web01\n")} {
			answer, body, err := s.do("GET", path)
			switch {
			case err != nil:
				cut++
				if answer != nil && len(body) >= len(want) {
					t.Errorf("%d: %s: %v after all %d bytes", i, path, err, len(body))
				}
			case answer.StatusCode >= 500:
				errors++
			case answer.StatusCode == 404:
				errors++ // the guest's root was not found: point.json says why
			case answer.StatusCode != 200 || !bytes.Equal(body, want):
				t.Errorf("%d: %s: %v, and the body is wrong: %d bytes", i, path, answer, len(body))
			}
		}
		if answer, _, err := s.do("PROPFIND", "/main/web01/latest/fs/srv", "Depth", "1"); err != nil || answer.StatusCode >= 500 {
			listings++
		}
	}
	if errors == 0 || cut == 0 {
		t.Errorf("%d errors, %d cut: the damage was not met", errors, cut)
	}
	t.Logf("%d errors, %d cut off, %d listings refused", errors, cut, listings)
	if err := os.Remove(largest); err != nil {
		t.Fatal(err)
	}
	f.reopen()
	for _, path := range []string{"/main/web01/latest/fs/srv/big.bin", "/main/web01/latest/disks/vda.raw"} {
		if code, body := s.get(path); code < 500 {
			t.Errorf("without the pack: %s: %d %s", path, code, body)
		}
	}
	if code, _ := s.get("/main/web01/latest/machine/domain.xml"); code != 200 {
		t.Errorf("what needs no pack: %d", code)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// TestCadaver lets a client that is not ours look around and fetch a file.
func TestCadaver(t *testing.T) {
	cadaver, err := exec.LookPath("cadaver")
	if err != nil {
		t.Skip("there is no cadaver: install the package (.ci/apt-packages)")
	}
	img, dir := guest(t)
	f := newFolder(t)
	f.add("web01", img, noon)
	s := serve(t, newHandler(f, Options{Prefix: prefix}))
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), cadaver, "-r", "/dev/null", s.url+"/dav/main/web01/latest/")
	cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "LANG=C.UTF-8", "TERM=dumb"}
	cmd.Stdin = strings.NewReader("ls\ncd fs/srv\nls\nget big.bin\ncd ../odd\nls\nget \"ä ö\"\nget \"a&<b>\\\"'\" amp\nput big.bin\nmkcol new\ndelete 50%\nquit\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cadaver: %v\n%s", err, out)
	}
	for _, want := range []string{"Coll:   fs", "point.json", "big.bin", "3145851", "405 Method Not Allowed"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("cadaver does not say %q:\n%s", want, out)
		}
	}
	for name, from := range map[string]string{"big.bin": "srv/big.bin", "ä ö": "odd/ä ö"} {
		got, err := os.ReadFile(filepath.Join(home, name))
		want, werr := os.ReadFile(filepath.Join(dir, from))
		if err != nil || werr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v %v, %d bytes, want %d\n%s", name, err, werr, len(got), len(want), out)
		}
	}
}

// TestManyAtOnce is for the race detector, and for what stays held.
func TestManyAtOnce(t *testing.T) {
	img, _ := guest(t)
	f := newFolder(t)
	f.add("web01", img, noon)
	s := serve(t, newHandler(f, Options{Prefix: prefix}))
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() {
			paths := []string{"/main/web01/latest/fs/srv/big.bin", "/main/web01/latest/point.json", "/main/web01/2026-10-12T12-00-00Z/fs/bin/vim", "/main/web01/latest/disks/vda.raw"}
			answer, _, err := s.do("GET", paths[i%len(paths)])
			if err != nil || answer.StatusCode != 200 {
				t.Errorf("%v %v", answer, err)
			}
			answer, _, err = s.do("PROPFIND", "/main/web01/latest/fs/odd", "Depth", "1")
			if err != nil || answer.StatusCode != 207 && answer.StatusCode != 503 {
				t.Errorf("%v %v", answer, err)
			}
		})
	}
	all.Wait()
	f.wantFree()
}
