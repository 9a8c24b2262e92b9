package cli

import (
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/job"
)

// checked runs cairn check --json and gives its report.
func (h *host) checked(code int, argv ...string) job.Report {
	h.t.Helper()
	out, _ := h.must(code, append([]string{"check", "--json", "--quiet"}, argv...)...)
	var r job.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	return r
}

// largestPack gives the name in the repository of its largest object.
func (h *host) largestPack() string {
	h.t.Helper()
	best, most := "", int64(0)
	for _, path := range globbed(h.t, filepath.Join(h.repo, "packs", "*", "*")) {
		if n := size(h.t, path); n > most {
			best, most = path, n
		}
	}
	rel, err := filepath.Rel(h.repo, best)
	if err != nil {
		h.t.Fatal(err)
	}
	return rel
}

func globbed(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v, %v", pattern, list, err)
	}
	return list
}

// spoil flips a byte of an object's file at a part of its length.
func (h *host) spoil(object string, num, den int) {
	h.t.Helper()
	path := filepath.Join(h.repo, object)
	b, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	b[len(b)*num/den] ^= 0x10
	if err := os.WriteFile(path, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// sameTrees says whether two folders hold the same files.
func sameTrees(t *testing.T, a, b string) bool {
	t.Helper()
	read := func(top string) map[string]string {
		out := map[string]string{}
		if err := fs.WalkDir(os.DirFS(top), ".", func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				b, rerr := os.ReadFile(filepath.Join(top, path))
				out[path], err = string(b), rerr
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	x, y := read(a), read(b)
	for name, body := range x { // of a bad record readers take the copy that a repair put beside it
		if of, ok := strings.CutPrefix(name, "mended/"); ok {
			x[of] = body
			delete(x, name)
		}
	}
	for name, body := range x {
		if y[name] != body {
			return false
		}
	}
	return len(x) == len(y)
}

// Damage is told with the object, the chunks, the points, the ranges and the
// guest's files, and is repaired from a copy of the folder.
func TestCheckTellsAndRepairs(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	img := sampleImage(t)
	first := h.addPoint(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	second := h.addPoint(changedImage(img, 5), time.Date(2026, 10, 13, 2, 0, 0, 0, time.UTC))
	mirror := filepath.Join(t.TempDir(), "mirror")
	if out, err := exec.Command("cp", "-a", h.repo, mirror).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	victim := h.largestPack()
	h.spoil(victim, 1, 8)
	r := h.checked(exitDamage, "--read-data")
	i := slices.IndexFunc(r.Findings, func(f job.Finding) bool { return f.Kind == "pack" })
	if i < 0 {
		t.Fatalf("%+v", r)
	}
	f := r.Findings[i]
	if f.Object != victim || f.Fault != "changed" || f.Whole || len(f.Chunks) != 1 || len(f.Frames) != 1 || f.Chunks[0][1]-f.Chunks[0][0] > 32 || f.Next == "" ||
		len(f.Points) != 1 || f.Points[0].Lost == 0 || f.Points[0].ID != first && f.Points[0].ID != second {
		t.Errorf("the pack: %+v", f)
	}
	i = slices.IndexFunc(r.Findings, func(f job.Finding) bool { return f.Kind == "point" })
	if i < 0 || r.Findings[i].Disk != "vda" || r.Findings[i].Object != victim || len(r.Findings[i].Ranges) == 0 || r.Findings[i].Lost != f.Points[0].Lost {
		t.Errorf("the point: %+v", r.Findings)
	}
	if len(r.Files) != 1 || r.Files[0].ID != f.Points[0].ID || len(r.Files[0].Files)+len(r.Files[0].Cut) == 0 && f.Points[0].ID == first {
		t.Errorf("files: %+v", r.Files)
	}
	if out, _ := h.must(exitDamage, "check", "--read-data", "--files-time", "0s"); strings.Contains(out, "files that suffer") || !strings.Contains(out, "--repair --from") {
		t.Errorf("for people: %s", out)
	}
	// Without a mirror there is nothing to repair from, and it says so.
	if r := h.checked(exitDamage, "--read-data", "--repair"); len(r.Repaired) > 0 || !strings.Contains(r.Findings[0].Next, "--from") {
		t.Errorf("without a mirror: %+v", r.Findings[0])
	}
	// More harm: a lost pack, a damaged manifest, a cut intent.
	for _, path := range globbed(t, filepath.Join(h.repo, "packs", first, "*")) {
		if rel, _ := filepath.Rel(h.repo, path); rel != victim {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	h.spoil("points/"+second, 1, 2)
	if err := os.Truncate(filepath.Join(h.repo, "sessions", first), 20); err != nil {
		t.Fatal(err)
	}
	r = h.checked(exitWarnings, "--read-data", "--repair", "--from", mirror)
	if len(r.Findings) > 0 || len(r.Repaired) != 4 {
		t.Errorf("repaired: %+v", r)
	}
	if !sameTrees(t, h.repo, mirror) {
		t.Error("the repaired repository is not as it was")
	}
	h.must(exitOK, "check", "--read-data")
	h.must(exitUsage, "check", "--from", mirror)
	h.must(exitUsage, "check", "--repair", "--from", "/nonexistent")
}

// Without any secret every pack is held against its name.
func TestCheckKeyless(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	h.addPoint(sampleImage(t), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	t.Setenv("CAIRN_PASSWORD_FILE", "")
	h.must(exitWrongKey, "check")
	out, _ := h.must(exitOK, "check", "--keyless")
	if !strings.Contains(out, "cannot be said without a key") || !strings.Contains(out, "no damage found") {
		t.Errorf("%s", out)
	}
	h.must(exitNoRepository, "check", "--keyless", "-r", t.TempDir())
	h.must(exitUsage, "check", "--keyless", "--repair")
	h.spoil(h.largestPack(), 1, 3)
	h.spoil("config", 1, 2)
	r := h.checked(exitDamage, "--keyless")
	if len(r.Findings) != 2 || r.Findings[0].Object != h.largestPack() || r.Findings[1].Object != "config" {
		t.Errorf("%+v", r.Findings)
	}
}

// Shares go on where the last run ended, until all was read.
func TestCheckByShares(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	img := sampleImage(t)
	for day := range 6 {
		h.addPoint(changedImage(img, uint64(day)), time.Date(2026, 10, 1+day, 2, 0, 0, 0, time.UTC))
	}
	read, start := 0, -1.0
	for range 4 {
		r := h.checked(exitOK, "--read-data=25%")
		if r.Share == nil || r.PacksRead != r.Share.Packs {
			t.Fatalf("%+v", r)
		}
		if start >= 0 && r.Share.Start != start {
			t.Errorf("goes on from %g, want %g", r.Share.Start, start)
		}
		read, start = read+r.PacksRead, r.Share.End()
	}
	if n := len(globbed(t, filepath.Join(h.repo, "packs", "*", "*"))); read != n {
		t.Errorf("four quarters read %d of %d packs", read, n)
	}
	a, b := h.checked(exitOK, "--read-data=30", "--start", "0.125"), h.checked(exitOK, "--read-data=30%", "--start", "0.125")
	if a.PacksRead != b.PacksRead || a.BytesRead != b.BytesRead || a.Share.Start != 0.125 {
		t.Errorf("%+v, %+v", a, b)
	}
	for _, bad := range [][]string{{"--read-data=0%"}, {"--read-data=101%"}, {"--read-data=x"}, {"--start", "0.5"}, {"--read-data=5%", "--start", "1"}, {"--read-data", "--rate", "0"}, {"--files-time", "-1s"}} {
		h.must(exitUsage, append([]string{"check"}, bad...)...)
	}
	out, errs := h.must(exitOK, "check", "--read-data=5%")
	if !strings.Contains(errs, "from place") || !strings.Contains(out, "--start") {
		t.Errorf("%s%s", out, errs)
	}
}

// A rate is kept.
func TestCheckRate(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	img := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(img)
	h.addPoint(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	start := time.Now()
	report := h.checked(exitOK, "--read-data", "--rate", "2MiB")
	// The first MiB goes at once.
	if took, least := time.Since(start), time.Duration(float64(report.BytesRead-1<<20)/(2<<20)*float64(time.Second)); took < least || report.BytesRead < 3<<20 {
		t.Errorf("%d bytes in %s, want at least %s", report.BytesRead, took, least)
	}
}
