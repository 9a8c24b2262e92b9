package web

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"html"
	"io"
	iofs "io/fs"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/web/webtest"
	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

func TestPages(t *testing.T) {
	c := serve(t, nil)
	w := world(t)
	c.has("/", "2 VMs need a look", ">failing<", "connection refused", "not protected", "win11-test", "libvirt at qemu:///system does not answer", "Backup of web02", ">away<")
	body := c.get("/")
	if db, late, good := strings.Index(body, `href="/vms/db01"`), strings.Index(body, `href="/vms/ldap"`), strings.Index(body, `href="/vms/wiki"`); db < 0 || db > late || late > good {
		t.Errorf("not sorted by trouble: %d %d %d", db, late, good)
	}
	if body := c.get("/?state=failing"); strings.Contains(body, `href="/vms/wiki"`) || !strings.Contains(body, `href="/vms/db01"`) {
		t.Error("the filter does not filter")
	}
	c.has("/vms/web01", "before-upgrade", "crash", "application-consistent", "full read: the repository has no earlier point")
	id := newest(t)
	c.has(id, "the guest agent did not answer within 10 s", "bitmap cairn-b3f94e59 recorded all changes", "frozen 130 ms, paused 4.8 ms", "cairn restore web01@")
	first := "/points/main/" + w.Points[0]
	c.has(first, "postgresql@15-main", "pg_backup_start was called", "Debian GNU/Linux 12")
	c.has(first+"/objects", "BGSAVE ended before the instant", "users/anna")
	c.has(id+"/objects", "derived from its files", "redis")
	c.has(id+"/files", "vda-ext4", ">etc<", ">srv<", "drwxr-xr-x")
	c.has(id+"/files"+pathOf("/srv"), "damaged", "not in use", "1.0 GiB")
	c.has(id+"/files"+pathOf("/var/spool/many"), "message-0000.eml", "300 of 1200", "Further")
	c.has(id+"/files"+pathOf("/var/spool/many")+"&skip=1000", "message-1199.eml", "200 of 1200", "Before")
	c.has("/search?pattern=app.conf&vm=web01", "/etc/app.conf", "5 versions")
	c.has("/search?pattern=nothing-has-this-name", "Nothing")
	body = c.has("/versions?repo=main&vm=web01&path=%2Fetc%2Fapp.conf", "removed", "contents", "download")
	if n := strings.Count(body, "<tr>") - 1; n != 6 {
		t.Errorf("%d versions", n)
	}
	body = c.has("/versions?repo=main&vm=web01&path=%2Fetc%2Fapp.conf&compare=1", "were compared")
	if !strings.Contains(body, "metadata") {
		t.Error("equal contents are not found equal")
	}
	run := w.Daemon.Book().Runs(1, func(r runs.Run) bool { return r.VM == "db01" })[0]
	c.has("/runs/"+run.ID, "connection refused", "probe: connecting to /run/db01.qmp", "Exit code")
	c.has("/repositories/main", "Read to stored", "<svg", "As a table", "done")
	c.has("/repositories/offsite", "no repository at")
	for _, path := range []string{"/nope", "/vms/nope", "/runs/0123456789abcdef", "/runs/x", "/repositories/nope", "/points/main/0123", "/points/nope/0123", id + "/files" + pathOf("/nope"), "/versions?repo=main&vm=web01&path=/nope"} {
		if r, _, _ := c.do("GET", path, nil, ""); r.StatusCode != 404 {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
	for _, path := range []string{"/vms/web01?month=x", "/vms/web01?day=x", "/vms/web01?skip=-1", "/search?pattern=%5B", "/search?pattern=x&type=q", "/search?pattern=x&since=q", id + "/files" + pathOf("/a\x00b"), id + "/files" + pathOf("/srv/loop"), id + "/archive" + pathOf("/etc") + "&form=rar"} {
		if r, body, _ := c.do("GET", path, nil, ""); r.StatusCode != 400 && !strings.Contains(body, "wrong pattern") {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
}

// Every answer has what keeps a browser from doing anything but showing it, and
// holds neither script nor style.
func TestPagesHoldNoScript(t *testing.T) {
	c := serve(t, nil)
	bad := regexp.MustCompile(`(?i)<script(?:>|\s+[^>]*[^r]>[^<])|\sstyle=|\son[a-z]+=|javascript:|https?://[^"<\s]*\.(js|css)`)
	for _, path := range allPages(t) {
		r, body, err := c.do("GET", path, nil, "")
		if err != nil || r.StatusCode != 200 {
			t.Errorf("%s: %s %v", path, r.Status, err)
		}
		for k, want := range map[string]string{"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "X-Frame-Options": "DENY"} {
			if got := r.Header.Get(k); got != want {
				t.Errorf("%s: %s is %q", path, k, got)
			}
		}
		if r.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s lets others read it", path)
		}
		if found := bad.FindString(body); found != "" {
			t.Errorf("%s holds %q", path, found)
		}
		for _, want := range []string{`<html lang="en">`, `name="viewport"`, `href="#main"`, `<main id="main"`, `<nav `, "</html>"} {
			if !strings.Contains(body, want) && !(want == "<nav " && path == "/login") {
				t.Errorf("%s lacks %s", path, want)
			}
		}
		if strings.Contains(body, "<table") && strings.Count(body, "<table") != strings.Count(body, "<caption") {
			t.Errorf("%s has a table without a caption", path)
		}
		if strings.Contains(body, "ZgotmplZ") || strings.Contains(body, "<no value>") || strings.Contains(body, "%!") {
			t.Errorf("%s has a template's mistake", path)
		}
	}
	if !bad.MatchString(`<script>alert(1)</script>`) || !bad.MatchString(`<a onclick="x">`) || !bad.MatchString(`<p style="x">`) {
		t.Error("the test sees nothing")
	}
}

func TestHostileNames(t *testing.T) {
	c := serve(t, nil)
	id := newest(t)
	body := c.get(id + "/files" + pathOf("/srv/odd"))
	for _, bad := range []string{"<script>alert", "\x1b", "\u202e", "\xe9"} {
		if strings.Contains(body, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, good := range []string{"&lt;script&gt;alert", `caf\xe9.txt`, `\u202e`} {
		if !strings.Contains(body, good) {
			t.Errorf("the page lacks %q", good)
		}
	}
	for _, path := range regexp.MustCompile(`href="(/points/[^"]*/file\?[^"]*)"`).FindAllStringSubmatch(body, -1) {
		r, got, err := c.do("GET", html.UnescapeString(path[1]), nil, "")
		if err != nil || r.StatusCode != 200 || got == "" {
			t.Errorf("%s: %s %v", path[1], r.Status, err)
		}
		kind, par, err := mime.ParseMediaType(r.Header.Get("Content-Disposition"))
		if kind != "attachment" || err != nil || strings.ContainsAny(par["filename"], "/\\\"<>\x1b\u202e") || par["filename"] == "" {
			t.Errorf("%s: %q: %v", path[1], r.Header.Get("Content-Disposition"), err)
		}
		if r.Header.Get("Content-Type") != "application/octet-stream" || r.Header.Get("Content-Security-Policy") != sandbox || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: a browser may look into it: %v", path[1], r.Header)
		}
	}
	if n := len(regexp.MustCompile(`/file\?`).FindAllString(body, -1)); n < 7 {
		t.Errorf("only %d files", n)
	}
}

// No path and no link leads out of a point: what is asked for is the point's, or is
// not there.
func TestPathsStayInside(t *testing.T) {
	c := serve(t, nil)
	id := newest(t)
	passwd := c.get(id + "/file" + pathOf("/etc/passwd"))
	for _, path := range []string{"/../../etc/passwd", "/etc/out", "/srv/up/etc/passwd", "etc/passwd", "/./etc//passwd", "volumes/vda-ext4/../../etc/passwd", "volumes/vda-ext4/etc/out", "volumes/../etc/passwd"} {
		if got := c.get(id + "/file" + pathOf(path)); got != passwd || !strings.Contains(got, "Anna") {
			t.Errorf("%s gives %q", path, got)
		}
	}
	for _, path := range []string{"/proc/self/environ", "volumes/nope/etc", "/etc/passwd/..%00", "/srv/loop", strings.Repeat("/a", 3000)} {
		if r, body, _ := c.do("GET", id+"/file"+pathOf(path), nil, ""); r.StatusCode < 400 {
			t.Errorf("%s: %s %q", path, r.Status, body)
		}
	}
}

func TestFilesAreSentInRanges(t *testing.T) {
	c := serve(t, nil)
	path := newest(t) + "/file" + pathOf("/srv/projects/thesis.txt")
	whole := c.get(path)
	r, part, err := c.do("GET", path, map[string]string{"Range": "bytes=10-19"}, "")
	if err != nil || r.StatusCode != 206 || part != whole[10:20] || r.Header.Get("Content-Range") != "bytes 10-19/40000" {
		t.Errorf("%s %q %v", r.Status, part, err)
	}
	tag := r.Header.Get("ETag")
	if r, rest, _ := c.do("GET", path, map[string]string{"Range": "bytes=39990-", "If-Range": tag}, ""); r.StatusCode != 206 || rest != whole[39990:] {
		t.Errorf("%s %q", r.Status, rest)
	}
	if r, _, _ := c.do("GET", path, map[string]string{"Range": "bytes=50000-"}, ""); r.StatusCode != 416 {
		t.Error(r.Status)
	}
	if r, body, _ := c.do("HEAD", path, nil, ""); r.StatusCode != 200 || r.ContentLength != 40000 || body != "" {
		t.Errorf("%s %d", r.Status, r.ContentLength)
	}
	if r, body, _ := c.do("GET", newest(t)+"/file"+pathOf("/srv/sparse.img"), map[string]string{"Range": "bytes=1000000000-1000000009"}, ""); r.StatusCode != 206 || body != strings.Repeat("\x00", 10) {
		t.Errorf("%s %q", r.Status, body)
	}
}

// A file that is damaged breaks the connection: nobody takes the half for the
// whole.
func TestDamagedFileBreaksOff(t *testing.T) {
	c := serve(t, nil)
	r, body, err := c.do("GET", newest(t)+"/file"+pathOf(webtest.Damaged), nil, "")
	if r.StatusCode != 200 || err == nil || len(body) >= 2<<20 {
		t.Errorf("%s, %d bytes, %v", r.Status, len(body), err)
	}
}

// untar reads a tar.gz as far as it goes.
func untar(body string) (files map[string]string, err error) {
	files = map[string]string{}
	z, err := gzip.NewReader(strings.NewReader(body))
	if err != nil {
		return files, err
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return files, err
		}
		text := h.Linkname
		if h.Typeflag == tar.TypeReg && h.Size < 64<<20 {
			b, err := io.ReadAll(r)
			if err != nil {
				return files, err
			}
			text = string(b)
		}
		files[h.Name] = text
	}
}

func TestArchives(t *testing.T) {
	c := serve(t, nil)
	id := newest(t)
	etc := id + "/archive" + pathOf("/etc")
	files, err := untar(c.get(etc))
	if err != nil || files["etc/hostname"] != "web01\n" || files["etc/out"] != "/../../../../etc/passwd" || files["etc/"+lastName] != "" {
		t.Errorf("%v %q", err, files)
	}
	z, err := zip.NewReader(strings.NewReader(c.get(etc+"&form=zip")), int64(len(c.get(etc+"&form=zip"))))
	must(t, err)
	found := 0
	for _, f := range z.File {
		r, err := f.Open()
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		if f.Name == "etc/hostname" && string(b) == "web01\n" || f.Name == "etc/out" && string(b) == "/../../../../etc/passwd" && f.Mode()&iofs.ModeSymlink != 0 {
			found++
		}
	}
	if found != 2 {
		t.Errorf("found %d in %d", found, len(z.File))
	}
	if r, _, _ := c.do("GET", id+"/archive"+pathOf("/etc/fstab"), nil, ""); r.StatusCode != 400 {
		t.Error(r.Status)
	}
	if r, body, _ := c.do("HEAD", etc, nil, ""); r.StatusCode != 200 || body != "" {
		t.Error(r.Status)
	}
}

// An archive that lacks something has a list of it, and the connection breaks; who
// asks for what can be read gets it, with the list.
func TestArchivesWithDamage(t *testing.T) {
	c := serve(t, nil)
	srv := newest(t) + "/archive" + pathOf("/srv")
	_, body, err := c.do("GET", srv, nil, "")
	if err == nil {
		t.Error("the connection ended as if all were well")
	}
	if files, err := untar(body); err != nil || !strings.Contains(files["srv/"+lastName], "NOT whole") {
		t.Errorf("what came before has no list: %v", err)
	}
	r, body, err := c.do("GET", srv+"&damaged=leave-out", nil, "")
	must(t, err)
	if r.Trailer.Get(headerFailures) != "2" {
		t.Errorf("trailer %q", r.Trailer)
	}
	files, err := untar(body)
	list := files["srv/"+lastName]
	if err != nil || !strings.Contains(list, "srv/damaged.bin") || !strings.Contains(list, "srv/cleared.txt") {
		t.Errorf("%v\n%s", err, list)
	}
	if len(files["srv/projects/thesis.txt"])+len(files["srv/projects/copy.txt"]) < 40000 {
		t.Error("the rest is not there")
	}
	for name := range files {
		if strings.HasPrefix(name, "/") || strings.Contains(name, "../") {
			t.Errorf("name %q", name)
		}
	}
	if len(body) > 1<<20 {
		t.Errorf("%d bytes: the hole was sent", len(body))
	}
	odd := newest(t) + "/archive" + pathOf("/srv/odd") + "&form=zip"
	body = c.get(odd)
	z, err := zip.NewReader(strings.NewReader(body), int64(len(body)))
	must(t, err)
	if len(z.File) < 8 {
		t.Errorf("%d files", len(z.File))
	}
}

// What of a large file cannot be read is zeros in an archive, and listed; a small
// one is left out.
func TestArchivesFillWhatCannotBeRead(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	n := fs.File("/d/large", "")
	n.Contents, n.Size = &badFile{size: 3 << 20, bad: 2<<20 + 5000}, 3<<20
	small := fs.File("/d/small", "")
	small.Contents, small.Size = &badFile{size: 8000, bad: 100}, 8000
	fs.File("/d/whole", "whole")
	fs.Add("/d/fifo", filesystem.ModeFIFO|0o600)
	v, err := tree.New(&restorepoint.Manifest{}, treetest.Volumes{{Volume: tree.Volume{Name: "r", UUID: "r"}, Reader: fs}}.Scan).Volume(t.Context(), 0)
	must(t, err)
	at, err := v.Walk(t.Context(), v.Root(), "/d", true)
	must(t, err)
	var tgz, zipped bytes.Buffer
	_, err = tarGzip(t.Context(), &tgz, opening{view: v, at: at}, "d")
	must(t, err)
	files, err := untar(tgz.String())
	must(t, err)
	_, err = zipOut(t.Context(), &zipped, opening{view: v, at: at}, "d")
	must(t, err)
	z, err := zip.NewReader(bytes.NewReader(zipped.Bytes()), int64(zipped.Len()))
	must(t, err)
	other := map[string]string{}
	for _, f := range z.File {
		r, err := f.Open()
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		other[f.Name] = string(b)
	}
	for form, files := range map[string]map[string]string{"tar.gz": files, "zip": other} {
		got := files["d/large"]
		want := strings.Repeat("x", 2<<20+4096) + strings.Repeat("\x00", 4096) + strings.Repeat("x", 1<<20-8192)
		if got != want {
			t.Errorf("%s: large has %d bytes", form, len(got))
		}
		if _, ok := files["d/small"]; ok || files["d/whole"] != "whole" {
			t.Errorf("%s: small is there, or whole is not", form)
		}
		list := files["d/"+lastName]
		if !strings.Contains(list, "d/large\n    4096 bytes of it cannot be read and are zeros") || !strings.Contains(list, "d/small\n") || strings.Contains(list, "d/fifo") != (form == "zip") {
			t.Errorf("%s: %s", form, list)
		}
	}
}

// badFile is full of x; the block with the byte bad cannot be read.
type badFile struct{ size, bad int64 }

func (f *badFile) Size() int64 { return f.size }
func (f *badFile) NextData(off int64) (int64, int64, error) {
	if off >= f.size {
		return 0, 0, io.EOF
	}
	return off, f.size, nil
}
func (f *badFile) ReadAt(p []byte, off int64) (int, error) {
	if block := f.bad / 4096 * 4096; off < block+4096 && off+int64(len(p)) > block {
		return 0, filesystem.ErrCorrupt
	}
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// The same of a zip.
func TestZipWithDamage(t *testing.T) {
	c := serve(t, nil)
	_, body, err := c.do("GET", newest(t)+"/archive"+pathOf("/srv")+"&form=zip", nil, "")
	if err == nil {
		t.Error("the connection ended as if all were well")
	}
	z, err := zip.NewReader(strings.NewReader(body), int64(len(body)))
	must(t, err)
	for _, f := range z.File {
		if f.Name == "srv/"+lastName {
			r, err := f.Open()
			must(t, err)
			b, err := io.ReadAll(r)
			must(t, err)
			for _, want := range []string{"srv/damaged.bin", "srv/cleared.txt", "NOT whole"} {
				if !bytes.Contains(b, []byte(want)) {
					t.Errorf("the list lacks %s:\n%s", want, b)
				}
			}
			return
		}
	}
	t.Error("there is no list")
}

func TestAccess(t *testing.T) {
	const token = "0123456789abcdefghijklmn"
	mounted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Method+" mounted") })
	c := serve(t, func(o *Options) {
		o.Token = token
		o.Mount = map[string]http.Handler{"/metrics": mounted, "/dav/": mounted, "/healthz": mounted}
		o.Open = []string{"/healthz"}
		o.Names = func(name string) bool { return name == "backup.example.com" }
	})
	browser := map[string]string{"Accept": "text/html"}
	for _, path := range allPages(t) {
		if path == "/login" {
			continue
		}
		r, body, _ := c.do("GET", path, nil, "")
		if r.StatusCode != 401 || strings.Contains(body, "web01") || strings.Contains(body, "host1") {
			t.Errorf("%s without the token: %s", path, r.Status)
		}
		r, _, _ = c.do("GET", path, browser, "")
		if to := r.Header.Get("Location"); r.StatusCode != 303 || to != "/login?to="+url.QueryEscape(path) {
			t.Errorf("%s: %s to %s", path, r.Status, to)
		}
	}
	if _, body, _ := c.do("GET", "/login", nil, ""); strings.Contains(body, "host1") || strings.Contains(body, "demo") {
		t.Error("the login tells of the host")
	}
	for path, want := range map[string]int{"/api/status": 401, newest(t) + "/file" + pathOf("/etc/passwd"): 401, newest(t) + "/archive": 401, "/events": 401, "/metrics": 401, "/dav/x": 401, "/healthz": 200, "/static/app.css": 200} {
		if r, _, _ := c.do("GET", path, nil, ""); r.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, r.Status, want)
		}
	}
	for auth, want := range map[string]int{"Bearer " + token: 200, "bearer " + token: 200, "Bearer " + token + "x": 401, "Bearer ": 401, "Basic " + token: 401} {
		if r, _, _ := c.do("GET", "/api/status", map[string]string{"Authorization": auth}, ""); r.StatusCode != want {
			t.Errorf("%q: %s", auth, r.Status)
		}
	}
	if r, body, _ := c.do("PROPFIND", "/dav/x", map[string]string{"Authorization": "Basic eDowMTIzNDU2Nzg5YWJjZGVmZ2hpamtsbW4="}, ""); r.StatusCode != 200 || body != "PROPFIND mounted" || r.Header.Get("Content-Security-Policy") != sandbox {
		t.Errorf("what is mounted: %s %q", r.Status, body)
	}
	// By the form.
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
	if r, _, _ := c.do("POST", "/login", form, "token=wrong"); r.StatusCode != 403 || r.Header.Get("Set-Cookie") != "" {
		t.Error(r.Status)
	}
	if r, _, _ := c.do("POST", "/login", map[string]string{"Content-Type": form["Content-Type"], "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, "token="+token); r.StatusCode != 403 {
		t.Errorf("from another site: %s", r.Status)
	}
	r, _, _ := c.do("POST", "/login", form, "token="+token+"&to=%2Fruns")
	if r.StatusCode != 303 || r.Header.Get("Location") != "/runs" || len(r.Cookies()) != 1 {
		t.Fatal(r.Status, r.Header)
	}
	cookie := r.Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || strings.Contains(cookie.Value, token) {
		t.Errorf("cookie %v", cookie)
	}
	in := map[string]string{"Cookie": cookie.Name + "=" + cookie.Value}
	if r, body, _ := c.do("GET", "/", in, ""); r.StatusCode != 200 || !strings.Contains(body, "Log out") {
		t.Error(r.Status)
	}
	for _, value := range []string{cookie.Value + "0", "9999999999" + cookie.Value[10:], "x", ".", strings.Replace(cookie.Value, ".", "0.", 1)} {
		if r, _, _ := c.do("GET", "/", map[string]string{"Cookie": cookie.Name + "=" + value}, ""); r.StatusCode != 401 {
			t.Errorf("the cookie %q counts", value)
		}
	}
	old := &site{Options: Options{Token: token, Now: func() time.Time { return time.Now().Add(-13 * time.Hour) }}}
	if r, _, _ := c.do("GET", "/", map[string]string{"Cookie": cookieName + "=" + old.session(old.Now().Add(sessionTime))}, ""); r.StatusCode != 401 {
		t.Error("a session does not end")
	}
	if r, _, _ := c.do("POST", "/logout", in, ""); r.StatusCode != 303 || r.Cookies()[0].MaxAge >= 0 {
		t.Error("the logout")
	}
	// Methods, names, sizes.
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
		if r, _, _ := c.do(method, "/", in, ""); r.StatusCode != 405 {
			t.Errorf("%s: %s", method, r.Status)
		}
	}
	for host, want := range map[string]int{"localhost": 200, "LOCALHOST:1": 200, "127.0.0.1": 200, "[::1]:80": 200, "127.9.9.9": 200, "backup.example.com": 200, "Backup.Example.com.:443": 200, "evil.example": 421, "localhost.evil.example": 421, "10.0.0.1": 421, "127.0.0.1.evil.example": 421} {
		if r, _, _ := c.do("GET", "/api/status", map[string]string{"Host": host, "Authorization": "Bearer " + token}, ""); r.StatusCode != want {
			t.Errorf("called %s: %s, want %d", host, r.Status, want)
		}
	}
	if r, _, _ := c.do("POST", "/login", form, "token="+strings.Repeat("x", maxBody+1)); r.StatusCode < 400 {
		t.Error(r.Status)
	}
	if r, _, _ := c.do("GET", "/?name="+strings.Repeat("x", maxTarget), in, ""); r.StatusCode != 414 {
		t.Error(r.Status)
	}
}

func TestStatusForPrograms(t *testing.T) {
	c := serve(t, nil)
	var got struct {
		Host string `json:"host"`
		VMs  []struct {
			Name, State, Reason string
			Points              int
		} `json:"vms"`
		Repositories []struct {
			Name, State string
			Points      int
			AsOf        time.Time `json:"as_of"`
		} `json:"repositories"`
		Running []struct {
			Step string `json:"step"`
		} `json:"running"`
	}
	must(t, json.Unmarshal([]byte(c.get("/api/status")), &got))
	if got.Host != "host1" || len(got.VMs) != 16 || got.VMs[0].Name != "web01" || got.VMs[0].Points != 6 || got.VMs[3].State != "failing" || !strings.Contains(got.VMs[3].Reason, "refused") {
		t.Errorf("%+v", got.VMs[:4])
	}
	if len(got.Repositories) != 2 || got.Repositories[0].State != "good" || got.Repositories[0].Points != 7 || got.Repositories[0].AsOf.IsZero() || got.Repositories[1].State != "away" || len(got.Running) != 1 {
		t.Errorf("%+v", got.Repositories)
	}
}

func FuzzPlace(f *testing.F) {
	for _, s := range []string{"", "/", "/etc/../..", "volumes/vda/x", "volumes//x", "volumes/../x", "a\x00b", "/\xff/..", "volumes/vda/../../.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlace(text)
		if err != nil {
			return
		}
		if !strings.HasPrefix(p.in, "/") || strings.Contains(p.in+"/", "/../") || strings.Contains(p.in, "//") || strings.Contains(p.volume, "/") || p.volume == ".." || len(text) > maxPath {
			t.Errorf("%q is %+v", text, p)
		}
		again, err := parsePlace(p.String())
		if err != nil || again != p {
			t.Errorf("%q is %+v, and that is %+v, %v", text, p, again, err)
		}
		for _, c := range p.crumbs("main", "id") {
			u, err := url.Parse(c.URL)
			if err != nil || u.Host != "" || u.Path != "/points/main/id/files" {
				t.Errorf("%q leads to %s", text, c.URL)
			}
		}
	})
}

func FuzzDisposition(f *testing.F) {
	for _, s := range []string{"a.txt", webtest.Quotes, webtest.Escape, webtest.Latin, webtest.Bidi, webtest.Unicode, "", "..", "a\r\nSet-Cookie: x=y", "%2e%2e%2fx", strings.Repeat("ä", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := disposition(name)
		for i := range len(got) {
			if got[i] < 0x20 || got[i] > 0x7e {
				t.Fatalf("%q: %q", name, got)
			}
		}
		kind, par, err := mime.ParseMediaType(got)
		if err != nil || kind != "attachment" || par["filename"] == "" || strings.Trim(par["filename"], ".") == "" || strings.ContainsAny(par["filename"], "/\\:\x00\"") || len(par["filename"]) > maxFileName {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	})
}

func FuzzLoginLeadsNowhereElse(f *testing.F) {
	for _, s := range []string{"/", "/runs?x=y#z", "//evil.example", "/\\evil.example", "https://evil.example", "/\t/evil.example", "javascript:alert(1)", "/%2f/evil.example", "/..//evil.example"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, to string) {
		got := here(to)
		u, err := url.Parse(got)
		if err != nil || u.Host != "" || u.Scheme != "" || !strings.HasPrefix(got, "/") || strings.HasPrefix(got, "//") || strings.ContainsAny(got, "\\\r\n\t") {
			t.Errorf("%q leads to %q", to, got)
		}
	})
}

func FuzzQuestion(f *testing.F) {
	f.Add("pattern=*.conf&vm=web01&since=2026-11-01&min=3&type=f")
	f.Add("pattern=%5B&under=volumes/x&until=x")
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		o, q, err := parseQuestion(values)
		if err != nil {
			return
		}
		if len(q.Pattern) > maxPattern || q.MinSize < 0 || len(q.Types) > 1 || q.Under != "" && strings.Contains("/"+q.Under+"/", "/../") {
			t.Errorf("%q: %+v", query, q)
		}
		_, _, _ = o.days()
	})
}
