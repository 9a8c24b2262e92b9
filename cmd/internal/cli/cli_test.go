package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// host is a machine with folders of its own for Cairn.
type host struct {
	t    *testing.T
	repo string
	dirs config.Dirs
}

func newHost(t *testing.T) *host {
	t.Helper()
	top := t.TempDir()
	h := &host{t: t, repo: filepath.Join(top, "repo"), dirs: config.Dirs{Config: filepath.Join(top, "etc"), Cache: filepath.Join(top, "cache"), State: filepath.Join(top, "state")}}
	secret, _, err := seal.NewIdentity() // opens without the slow derivation of a passphrase
	if err != nil {
		t.Fatal(err)
	}
	pass := filepath.Join(top, "pass")
	if err := os.WriteFile(pass, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"CAIRN_REPOSITORY": h.repo, "CAIRN_PASSWORD_FILE": pass, "CAIRN_CONFIG_DIR": h.dirs.Config,
		"CAIRN_CACHE_DIR": h.dirs.Cache, "CAIRN_STATE_DIR": h.dirs.State} {
		t.Setenv(k, v)
	}
	return h
}

// cairn runs a command line and gives code, stdout and stderr.
func (h *host) cairn(argv ...string) (int, string, string) {
	h.t.Helper()
	var out, errs bytes.Buffer
	code := Run(context.Background(), "test", argv, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// must runs a command line that has to end with code.
func (h *host) must(code int, argv ...string) (string, string) {
	h.t.Helper()
	got, out, errs := h.cairn(argv...)
	if got != code {
		h.t.Fatalf("cairn %s: exit %d, want %d\nstdout: %s\nstderr: %s", strings.Join(argv, " "), got, code, out, errs)
	}
	return out, errs
}

// addPoint stores an image as the disk vda of a new point of web01, as a
// backup would.
func (h *host) addPoint(img []byte, at time.Time) string {
	h.t.Helper()
	return h.addPointWith(img, at, func(*restorepoint.Manifest) {})
}

// addPointWith is addPoint with a change of the manifest.
func (h *host) addPointWith(img []byte, at time.Time, change func(*restorepoint.Manifest)) string {
	h.t.Helper()
	ctx := context.Background()
	fatal := func(err error) {
		h.t.Helper()
		if err != nil {
			h.t.Fatal(err)
		}
	}
	repo, err := wire.OpenRepo(ctx, h.repo, wire.Secret{File: os.Getenv("CAIRN_PASSWORD_FILE")}, h.dirs)
	fatal(err)
	defer repo.Close()
	s, err := repo.Store.Begin(ctx, nothing{}, nil)
	fatal(err)
	defer s.Close()
	b, err := restorepoint.NewBuilder(ctx, s, nil, int64(len(img)))
	fatal(err)
	for off := 0; off < len(img); off += chunkstore.BatchSize {
		buf, err := s.Buffer(ctx)
		fatal(err)
		n := copy(buf, img[off:])
		end := (n + chunk.Size - 1) / chunk.Size * chunk.Size
		clear(buf[n:end])
		first := int64(off / chunk.Size)
		fatal(s.Append(ctx, &chunkstore.Batch{Data: buf[:end], Placed: func(l []chunk.Loc) error { return b.Set(first, l) }}))
	}
	fatal(s.Flush(ctx))
	fatal(b.Finish())
	fatal(s.FlushRecords(ctx))
	m := restorepoint.Manifest{Version: 1, ID: s.ID().String(), VM: restorepoint.VM{Name: "web01"}, Time: at, Read: "full", Reason: "a test",
		Consistency: restorepoint.Consistency{Level: "crash", Reason: "a test"}, Disks: []restorepoint.Disk{{Name: "vda", Size: int64(len(img)), MapRoot: b.Root()}}}
	change(&m)
	body, err := json.Marshal(m)
	fatal(err)
	fatal(s.Commit(ctx, body))
	return m.ID
}

type nothing struct{}

func (nothing) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (nothing) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// sampleImage is the frozen ext4 image of guest/ext4.
func sampleImage(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open("../../../guest/ext4/testdata/clean.img.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Scripts depend on the exit codes and on the words being on stderr.
func TestExitCodes(t *testing.T) {
	h := newHost(t)
	h.must(exitNoRepository, "points")
	h.must(exitOK, "init")
	if _, errs := h.must(exitFailed, "init"); !strings.Contains(errs, "exists already") {
		t.Errorf("second init: %s", errs)
	}
	h.must(exitOK, "points")
	h.must(exitUsage, "frobnicate")
	h.must(exitUsage, "points", "--frobnicate")
	h.must(exitUsage, "cat", "web01")
	h.must(exitUsage, "restore", "web01:/x")
	h.must(exitUsage, "show", "web01@latest")
	h.must(exitUsage, "vm", "add", "a/b", "--qmp", "x")
	if _, errs := h.must(exitUsage, "backup", "web01"); !strings.Contains(errs, "cairn vm add") {
		t.Errorf("an unknown VM gets no hint: %s", errs)
	}
	h.must(exitOK, "vm", "add", "web01", "--qmp", "/nonexistent")
	if _, errs := h.must(exitFailed, "backup", "web01"); !strings.Contains(errs, "/nonexistent") {
		t.Errorf("a dead monitor is not named: %s", errs)
	}
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("nope\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(exitWrongKey, "points", "--password-file", wrong)
	if err := os.Chmod(wrong, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errs := h.must(exitWrongKey, "points", "--password-file", wrong); !strings.Contains(errs, "chmod 600") {
		t.Errorf("a readable password file: %s", errs)
	}
	out, errs := h.must(exitNoRepository, "points", "--json", "-r", "/nonexistent")
	if out != "" || !json.Valid([]byte(errs)) {
		t.Errorf("--json error: stdout %q, stderr %q", out, errs)
	}
}

// The recovery key that init prints opens the repository.
func TestRecoveryKey(t *testing.T) {
	h := newHost(t)
	out, _ := h.must(exitOK, "init", "--json")
	var made struct {
		Recovery string `json:"recovery_key"`
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(made.Recovery+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(exitOK, "points", "--password-file", key)
}

func TestUnencryptedSaysSo(t *testing.T) {
	h := newHost(t)
	out, _ := h.must(exitOK, "init", "--no-encryption")
	if !strings.Contains(out, "NOT encrypted") {
		t.Errorf("init says: %s", out)
	}
	t.Setenv("CAIRN_PASSWORD_FILE", "")
	h.must(exitOK, "points")
}

// A point's files are listed, printed and restored without any mount.
func TestFilesOfAPoint(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	img := sampleImage(t)
	id := h.addPoint(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	h.addPoint(img, time.Date(2026, 10, 13, 2, 0, 0, 0, time.UTC))

	var points struct {
		Points []pointJSON `json:"points"`
	}
	out, _ := h.must(exitOK, "points", "--json")
	if err := json.Unmarshal([]byte(out), &points); err != nil || len(points.Points) != 2 || points.Points[0].ID != id || points.Points[0].Consistency != "crash" {
		t.Fatalf("points: %s (%v)", out, err)
	}
	if out, _ := h.must(exitOK, "show", id[:8]); !strings.Contains(out, "2026-10-12T02-00-00Z") {
		t.Errorf("show: %s", out)
	}

	var list struct {
		Entries []wire.File `json:"entries"`
	}
	out, _ = h.must(exitOK, "ls", "--json", "web01@2026-10-12:/")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Entries) == 0 {
		t.Fatalf("ls: %s (%v)", out, err)
	}
	file := ""
	for _, e := range list.Entries {
		if e.Type == "file" && e.Size > 0 && e.Size < 1<<20 {
			file = "/" + e.Name
			break
		}
	}
	if file == "" {
		t.Fatalf("the sample has no small file at its top: %s", out)
	}
	body, _ := h.must(exitOK, "cat", "web01:"+file)
	to := t.TempDir()
	h.must(exitOK, "restore", "web01:"+file, "--to", to)
	if got, err := os.ReadFile(filepath.Join(to, file)); err != nil || string(got) != body || body == "" {
		t.Errorf("restored %d bytes, cat gave %d, %v", len(got), len(body), err)
	}
	// Once more, as after an interrupt: it is there, and whole.
	out, _ = h.must(exitOK, "restore", "web01:"+file, "--to", to, "--resume")
	if !strings.Contains(out, "1 of them were there already") {
		t.Errorf("resumed: %s", out)
	}
	h.must(exitFailed, "restore", "web01:"+file, "--to", to)
	h.must(exitUsage, "cat", "web01:/no/such/file")
	h.must(exitUsage, "cat", "web01:/small")
	h.must(exitUsage, "cat", "web01:"+file+"/")
	small, _ := h.must(exitOK, "cat", "web01:/small/f03")
	stream, _ := h.must(exitOK, "cat", "web01:/small/")
	found := false
	for r := tar.NewReader(strings.NewReader(stream)); ; {
		e, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); e.Name == "small/f03" {
			found = err == nil && string(got) == small && small != ""
		}
	}
	if !found {
		t.Error("/small/f03 is not in the tar stream")
	}

	raw := filepath.Join(to, "disk.raw")
	h.must(exitOK, "restore", "web01@latest", "--disk", "vda", "--to", raw)
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, img) {
		t.Errorf("the restored disk differs (%v)", err)
	}
	h.must(exitFailed, "restore", "web01@latest", "--disk", "vda", "--to", raw)
	h.must(exitOK, "restore", "web01@latest", "--disk", "vda", "--to", raw, "--overwrite")
	h.must(exitUsage, "restore", "web01@latest", "--disk", "vdz", "--to", raw+"2")
	h.must(exitUsage, "restore", "web01:/x", "--delta", "--to", to)
	h.must(exitUsage, "restore", "web01@latest", "--disk", "vda", "--to", raw+"2", "--format", "vmdk")
	h.must(exitFailed, "restore", "web01@latest", "--disk", "vda", "--to", raw+"2", "--delta")
	if err := os.WriteFile(raw, append([]byte("stale"), img[5:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	var done struct {
		BytesWritten  int64 `json:"bytes_written"`
		BytesZeroed   int64 `json:"bytes_zeroed"`
		BytesVerified int64 `json:"bytes_verified"`
	}
	out, _ = h.must(exitOK, "restore", "web01@latest", "--disk", "vda", "--to", raw, "--delta", "--json", "--quiet")
	if err := json.Unmarshal([]byte(out), &done); err != nil || done.BytesWritten+done.BytesZeroed != 4096 || done.BytesVerified < 4096 {
		t.Errorf("a restore of one changed chunk: %+v, %v", done, err)
	}
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, img) {
		t.Errorf("the disk restored in place differs (%v)", err)
	}

	if out, _ := h.must(exitOK, "check", "--read-data"); !strings.Contains(out, "no damage") {
		t.Errorf("check: %s", out)
	}
	if out, _ := h.must(exitOK, "repair", "index"); !strings.Contains(out, "2 points") {
		t.Errorf("repair index: %s", out)
	}
}

// A flipped byte and a lost pack are found, named with the points that
// suffer, and do not hide what is whole.
func TestDamageIsReported(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	h.addPoint(sampleImage(t), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	packs, err := filepath.Glob(filepath.Join(h.repo, "packs", "*", "*"))
	if err != nil || len(packs) < 2 {
		t.Fatalf("packs: %v, %v", packs, err)
	}
	largest := packs[0]
	for _, p := range packs {
		if size(t, p) > size(t, largest) {
			largest = p
		}
	}
	b, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	if err := os.WriteFile(largest, b, 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(exitOK, "check") // the structure is whole
	out, _ := h.must(exitDamage, "check", "--read-data")
	if !strings.Contains(out, filepath.Base(largest)) || !strings.Contains(out, "web01@2026-10-12T02-00-00Z") {
		t.Errorf("check --read-data: %s", out)
	}
	if err := os.Remove(largest); err != nil {
		t.Fatal(err)
	}
	if out, _ := h.must(exitDamage, "check"); !strings.Contains(out, "web01@2026-10-12T02-00-00Z") {
		t.Errorf("check with a lost pack: %s", out)
	}
	h.must(exitOK, "points")
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

func TestModeString(t *testing.T) {
	for mode, want := range map[uint32]string{0o100644: "-rw-r--r--", 0o040755: "drwxr-xr-x", 0o104755: "-rwsr-xr-x", 0o102640: "-rw-r-S---", 0o041777: "drwxrwxrwt", 0o120777: "lrwxrwxrwx"} {
		if got := wire.ModeString(mode); got != want {
			t.Errorf("%o: got %s, want %s", mode, got, want)
		}
	}
}

func TestSafeKeepsTheTerminal(t *testing.T) {
	for in, want := range map[string]string{"plain.txt": "plain.txt", "grün": "grün", "a\x1b[2J": `"a\x1b[2J"`, "new\nline": `"new\nline"`, "\xff": `"\xff"`, "gnp\u202etxt.exe": `"gnp\u202etxt.exe"`} {
		if got := safe(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}
