package cli

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/index/restorepoint"
)

// copied runs cairn copy and gives its lines.
func (h *host) copied(argv ...string) []copyMessage {
	h.t.Helper()
	out, _ := h.must(exitOK, append([]string{"copy", "--json", "--quiet"}, argv...)...)
	var list []copyMessage
	for line := range strings.Lines(out) {
		var m copyMessage
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			h.t.Fatalf("%v: %s", err, line)
		}
		list = append(list, m)
	}
	return list
}

// offsite makes a second repository with a secret of its own.
func (h *host) offsite() (repo, pass string) {
	h.t.Helper()
	top := h.t.TempDir()
	repo, pass = filepath.Join(top, "offsite"), filepath.Join(top, "pass")
	if err := os.WriteFile(pass, []byte("another secret\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.must(exitOK, "init", "-r", repo, "--password-file", pass)
	return repo, pass
}

// changedImage is the sample with random bytes in some places, and zeros in
// others.
func changedImage(img []byte, seed uint64) []byte {
	out := bytes.Clone(img)
	r := rand.New(rand.NewPCG(seed, 7))
	for range 8 {
		off := r.IntN(len(out) - 70_000)
		if r.IntN(3) == 0 {
			clear(out[off : off+r.IntN(70_000)])
			continue
		}
		for i := range r.IntN(70_000) {
			out[off+i] = byte(r.Uint32())
		}
	}
	return out
}

// A copy is the same point under other keys: the same bytes, and what is known
// of it; copying it once more does nothing, and the next one moves only what
// differs.
func TestCopy(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	to, pass := h.offsite()
	base := sampleImage(t)
	images := [][]byte{base, changedImage(base, 1), changedImage(base, 2), append(changedImage(base, 3), make([]byte, 20<<20)...)}
	images[3] = append(images[3], []byte("an end that is no whole chunk")...)
	images = append(images, changedImage(base, 4)[:len(base)-5000])
	var ids []string
	for i, img := range images {
		ids = append(ids, h.addPointWith(img, time.Date(2026, 10, 12+i, 2, 0, 0, 0, time.UTC), func(m *restorepoint.Manifest) {
			m.Tags, m.VM.UUID, m.Disks[0].Bitmap = []string{"weekly"}, "8a2f", "cairn-x"
			m.Guest = &restorepoint.Guest{Source: "qemu-guest-agent", Hostname: "web01"}
			m.Consistency = restorepoint.Consistency{Level: "filesystem", Reason: "frozen"}
			m.Machine.NVRAM = []byte{1, 2, 3}
			m.Statistics.BytesDisk = int64(len(img))
			if i > 0 {
				m.Parent = ids[i-1]
			}
		}))
	}
	args := func(argv ...string) []string {
		return append(argv, "--to", to, "--to-password-file", pass)
	}
	first := h.copied(args(ids[0])...)
	if len(first) != 1 || first[0].There || first[0].Read != "full" || first[0].BytesSent == 0 || first[0].BytesRead < 100<<10 {
		t.Fatalf("first: %+v", first)
	}
	again := h.copied(args(ids[0])...)
	if len(again) != 1 || !again[0].There || again[0].Point != first[0].Point || again[0].BytesSent != 0 {
		t.Errorf("again: %+v", again)
	}
	second := h.copied(args(ids[1])...)
	if second[0].There || second[0].Read != "incremental" || second[0].Parent != first[0].Point {
		t.Errorf("second: %+v", second)
	}
	// addPoint knows no parent, so that its maps share nothing: all is read,
	// and found there.
	if second[0].BytesKnown < second[0].BytesRead/2 {
		t.Errorf("what is there already is not found: %+v", second)
	}
	rest := h.copied(args("--all", "--compare")...)
	if len(rest) != 5 || !rest[0].There || !rest[1].There || rest[2].There || rest[2].Compared == 0 {
		t.Errorf("the others: %+v", rest)
	}
	for i, m := range rest {
		raw := filepath.Join(t.TempDir(), "disk.raw")
		h.must(exitOK, "restore", m.Point, "--disk", "vda", "--to", raw, "-r", to, "--password-file", pass)
		if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, images[i]) {
			t.Errorf("point %d: the copied disk differs (%v)", i, err)
		}
	}
	out, _ := h.must(exitOK, "show", "--json", rest[2].Point, "-r", to, "--password-file", pass)
	var m restorepoint.Manifest
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		t.Fatal(err)
	}
	var src restorepoint.Manifest
	out, _ = h.must(exitOK, "show", "--json", ids[2])
	if err := json.Unmarshal([]byte(out), &src); err != nil {
		t.Fatal(err)
	}
	if m.VM != src.VM || !m.Time.Equal(src.Time) || m.Consistency != src.Consistency || m.Guest == nil || m.Guest.Hostname != "web01" ||
		!bytes.Equal(m.Machine.NVRAM, src.Machine.NVRAM) || m.Tags[0] != "weekly" || m.Disks[0].Bitmap != "" ||
		m.CopiedFrom == nil || m.CopiedFrom.Point != ids[2] || len(m.CopiedFrom.Repository) != 32 {
		t.Errorf("the copy's manifest: %+v", m)
	}
	h.must(exitOK, "check", "--read-data", "-r", to, "--password-file", pass)
	h.must(exitOK, "points", "-r", to, "--password-file", pass)

	// And home again: these are there, as they were made there.
	t.Setenv("CAIRN_TO_PASSWORD_FILE", os.Getenv("CAIRN_PASSWORD_FILE"))
	back := h.copied("--all", "-r", to, "--password-file", pass, "--to", h.repo)
	for i, m := range back {
		if !m.There || m.Point != ids[i] {
			t.Errorf("back: %+v", m)
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	to, pass := h.offsite()
	id := h.addPoint(sampleImage(t), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	h.must(exitUsage, "copy", id)
	h.must(exitUsage, "copy", "--to", to)
	h.must(exitUsage, "copy", id, "--to", h.repo, "--to-password-file", os.Getenv("CAIRN_PASSWORD_FILE"))
	h.must(exitUsage, "copy", "--all", "db01", "--to", to, "--to-password-file", pass)
	if _, errs := h.must(exitWrongKey, "copy", id, "--to", to); !strings.Contains(errs, "--to-password-file") {
		t.Errorf("no secret for the target: %s", errs)
	}
	h.must(exitWrongKey, "copy", id, "--to", to, "--to-password-file", os.Getenv("CAIRN_PASSWORD_FILE"))
	h.must(exitNoRepository, "copy", id, "--to", filepath.Join(to, "nothing"), "--to-password-file", pass)
}
