package webdav

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

var noon = time.Date(2026, 10, 12, 12, 0, 0, 0, time.UTC)

// folder shares one repository, main. It counts who has its catalogue.
type folder struct {
	t    testing.TB
	path string
	dirs config.Dirs
	held atomic.Int32

	mu        sync.Mutex
	repo      *wire.Repo
	catalogue *wire.Catalogue
}

func (f *folder) Repositories() []string { return []string{"main", "../evil", "", "."} }

func (f *folder) Catalogue(ctx context.Context, name string) (*wire.Catalogue, func(), error) {
	if name != "main" {
		return nil, nil, fmt.Errorf("asked for %q", name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.catalogue == nil {
		repo, err := wire.OpenRepo(ctx, f.path, wire.Secret{}, f.dirs)
		if err != nil {
			return nil, nil, err
		}
		f.repo, f.catalogue = repo, repo.NewCatalogue(context.WithoutCancel(ctx), 8<<20)
	}
	f.held.Add(1)
	return f.catalogue, sync.OnceFunc(func() { f.held.Add(-1) }), nil
}

// wantFree waits until nobody has the catalogue: an answer is read a little before its
// request is over.
func (f *folder) wantFree() {
	f.t.Helper()
	for until := time.Now().Add(5 * time.Second); f.held.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			f.t.Fatalf("the catalogue is held %d times when nobody asks", f.held.Load())
		}
	}
}

// reopen forgets all that was read.
func (f *folder) reopen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.catalogue != nil {
		f.catalogue.Close()
		if err := f.repo.Close(); err != nil {
			f.t.Error(err)
		}
	}
	f.repo, f.catalogue = nil, nil
}

func newFolder(t testing.TB) *folder {
	t.Helper()
	top := t.TempDir()
	f := &folder{t: t, path: filepath.Join(top, "repo"), dirs: config.Dirs{Config: filepath.Join(top, "etc"), Cache: filepath.Join(top, "cache"), State: filepath.Join(top, "state")}}
	if _, err := wire.InitRepo(t.Context(), f.path, chunkstore.InitOptions{Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.reopen)
	return f
}

type nothing struct{}

func (nothing) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (nothing) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// add stores an image as the disk vda of a new point, as a backup would.
func (f *folder) add(vm string, img []byte, at time.Time) {
	f.t.Helper()
	ctx := context.Background()
	must := func(err error) {
		f.t.Helper()
		if err != nil {
			f.t.Fatal(err)
		}
	}
	repo, err := wire.OpenRepo(ctx, f.path, wire.Secret{}, f.dirs)
	must(err)
	defer repo.Close()
	s, err := repo.Store.Begin(ctx, nothing{}, nil)
	must(err)
	defer s.Close()
	b, err := restorepoint.NewBuilder(ctx, s, nil, int64(len(img)))
	must(err)
	for off := 0; off < len(img); off += chunkstore.BatchSize {
		buf, err := s.Buffer(ctx)
		must(err)
		n := copy(buf, img[off:])
		end := (n + chunk.Size - 1) / chunk.Size * chunk.Size
		clear(buf[n:end])
		first := int64(off / chunk.Size)
		must(s.Append(ctx, &chunkstore.Batch{Data: buf[:end], Placed: func(l []chunk.Loc) error { return b.Set(first, l) }}))
	}
	must(s.Flush(ctx))
	must(b.Finish())
	must(s.FlushRecords(ctx))
	m := restorepoint.Manifest{Version: 1, ID: s.ID().String(), VM: restorepoint.VM{Name: vm}, Time: at, Read: "full", Reason: "a test",
		Consistency: restorepoint.Consistency{Level: "crash", Reason: "a test"}, Machine: restorepoint.Machine{DomainXML: "<domain/>\n"},
		Disks: []restorepoint.Disk{{Name: "vda", Size: int64(len(img)), MapRoot: b.Root()}}}
	body, err := json.Marshal(m)
	must(err)
	must(s.Commit(ctx, body))
}

// Names that lie in the image as others: mke2fs cannot write them.
var patched = map[string]string{"SLASHES-IN-A-NAME": "../../etc/passwd.", "DOTDOT-IS-THE-NAME": "nul\x00is in the name", "YY": ".."}

// guest is a disk with one ext4 filesystem, and its files as they lie in a folder.
func guest(t testing.TB) (img []byte, dir string) {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs mke2fs")
	}
	dir = filepath.Join(t.TempDir(), "guest")
	big := make([]byte, 3<<20+123)
	for i := range big {
		big[i] = byte(random.Uint32())
	}
	write := func(name, text string) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/fstab": "/dev/vda / ext4 defaults 0 1\n", "etc/hostname": "web01\n", "etc/os-release": "ID=debian\n", "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
		"usr/bin/vim": "vim\n", "srv/big.bin": string(big), "srv/empty": "",
		"srv/page.html": "<script>alert(1)</script>", "odd/\xff\xfe raw": "raw", "odd/line\nbreak": "line", "odd/50%": "percent", "odd/%2F": "literal", "odd/a&<b>\"'": "xml",
		"odd/" + strings.Repeat("l", 255): "long", "odd/ä ö": "umlauts", "odd/?q=1#f": "query", "evil/SLASHES-IN-A-NAME": "slashes", "evil/DOTDOT-IS-THE-NAME": "nul", "evil/YY": "dots",
		"a/b/c/file": "deep", "self/FOLDER-IN-ITSELF/x": "never seen",
	} {
		write(name, text)
	}
	for name, target := range map[string]string{
		"bin": "usr/bin", "usr/bin/editor": "/usr/bin/vim", "a/self": ".", "a/b/up": "..", "a/b/top": "/", "a/b/c/other": "/x", "x/back": "/a/b", "dangling": "/nowhere",
		"a/ring1": "ring2", "a/ring2": "ring1", "escape": "../../../../../../etc/passwd", "a/hop": "b/c", "file-link": "a/b/c/file/",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	image := dir + ".img"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum,^dir_index,^has_journal", "-d", dir, image).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	img, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range patched {
		at := bytes.Index(img, []byte{byte(len(name)), 1, name[0], name[1]}) // length and type before it, as in a directory
		if at < 0 || len(name) != len(to) {
			t.Fatalf("%s is not in the image", name)
		}
		copy(img[at+2:], to)
	}
	inItself(t, img, "FOLDER-IN-ITSELF")
	if err := os.RemoveAll(filepath.Join(dir, "self/FOLDER-IN-ITSELF")); err != nil { // so it is there no more
		t.Fatal(err)
	}
	return img, dir
}

// inItself makes the entry of a folder that of the folder that it is in.
func inItself(t testing.TB, img []byte, name string) {
	t.Helper()
	at := bytes.Index(img, append([]byte{byte(len(name)), 2}, name...)) - 6
	if at < 0 {
		t.Fatalf("%s is not in the image", name)
	}
	dot := at &^ 1023 // a block of 1 KiB begins with the entry of the folder itself
	copy(img[at:at+4], img[dot:dot+4])
}

var random = rand.New(rand.NewPCG(1, 2))

// site is a share that is served.
type site struct {
	t   testing.TB
	h   *handler
	url string
}

const prefix = "/dav"

func serve(t testing.TB, h *handler) *site {
	t.Helper()
	mux := http.NewServeMux() // as the page mounts it
	mux.Handle(prefix+"/", h)
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = nil
	s.Start()
	t.Cleanup(s.Close)
	return &site{t, h, s.URL}
}

// address gives the URL of a path.
func (s *site) address(path string) string {
	return s.url + (&url.URL{Path: prefix + path}).EscapedPath()
}

func (s *site) do(method, path string, headers ...string) (*http.Response, []byte, error) {
	s.t.Helper()
	return s.raw(method, s.address(path), headers...)
}

func (s *site) raw(method, address string, headers ...string) (*http.Response, []byte, error) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, address, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer, body, err
}

// get wants a whole answer, and gives its status and body.
func (s *site) get(path string) (int, string) {
	s.t.Helper()
	answer, body, err := s.do("GET", path)
	if err != nil {
		s.t.Fatalf("GET %s: %v", path, err)
	}
	return answer.StatusCode, string(body)
}

type multistatus struct {
	Responses []struct {
		Href  string `xml:"href"`
		Stats []struct {
			Status string `xml:"status"`
			Prop   struct {
				Length string `xml:"getcontentlength"`
				ETag   string `xml:"getetag"`
				Type   struct {
					Collection *struct{} `xml:"collection"`
				} `xml:"resourcetype"`
			} `xml:"prop"`
		} `xml:"propstat"`
	} `xml:"response"`
}

// ls lists a folder: what is in it, by name; folders with the size -1.
func (s *site) ls(path string) map[string]int64 {
	s.t.Helper()
	answer, body, err := s.do("PROPFIND", path, "Depth", "1")
	var m multistatus
	if err != nil || answer.StatusCode != http.StatusMultiStatus || xml.Unmarshal(body, &m) != nil {
		s.t.Fatalf("PROPFIND %s: %v %v\n%s", path, answer, err, body)
	}
	list := map[string]int64{}
	for i, r := range m.Responses {
		href, err := url.PathUnescape(r.Href)
		if err != nil {
			s.t.Fatal(err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(href, prefix+strings.TrimSuffix(path, "/")), "/")
		if i == 0 {
			if name != "" {
				s.t.Errorf("PROPFIND %s begins with %s", path, href)
			}
			continue
		}
		if name = strings.TrimPrefix(name, "/"); strings.Contains(name, "/") || list[name] != 0 {
			s.t.Errorf("PROPFIND %s lists %q", path, name)
		}
		var size int64 = -1
		if r.Stats[0].Prop.Type.Collection == nil {
			if _, err := fmt.Sscan(r.Stats[0].Prop.Length, &size); err != nil {
				s.t.Errorf("%s: length %q", name, r.Stats[0].Prop.Length)
			}
		}
		list[name] = size
	}
	return list
}
