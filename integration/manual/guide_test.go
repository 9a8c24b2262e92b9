package manual

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
	"cairn/integration/lab/objectstore"
	"cairn/integration/lab/product"
)

// step is a line of a text that is walked.
type step struct {
	section, line string
	code          int // that it ends with
}

var stepLine = regexp.MustCompile(`^  \$ (.*?)(?:   +exit code (\d+))?$`)

// stepsOf takes the lines out of a text that begin with "  $ ".
func stepsOf(text string) (steps []step) {
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line = strings.TrimRight(line, "\n")
		if line != "" && line[0] >= 'A' && line[0] <= 'Z' && line == strings.ToUpper(line) {
			section = line
		}
		if m := stepLine.FindStringSubmatch(line); m != nil {
			code, _ := strconv.Atoi(m[2]) // "" is 0
			steps = append(steps, step{section, m[1], code})
		}
	}
	return steps
}

// disaster is the host that was: what of it is left, and what was true in its
// guest.
type disaster struct {
	repo, recovery string
	notes, photo   string // contents, md5sum
	lab            []string
}

// before runs a host until it is lost: two points of a running guest.
func before(t *testing.T) disaster {
	t.Helper()
	dir := shortDir(t)
	env := append(os.Environ(), "CAIRN_REPOSITORY="+filepath.Join(dir, "repo"), "CAIRN_CONFIG_DIR="+filepath.Join(dir, "conf"),
		"CAIRN_CACHE_DIR="+filepath.Join(dir, "cache"), "CAIRN_STATE_DIR="+filepath.Join(dir, "state"), "CAIRN_PASSWORD_FILE="+filepath.Join(dir, "pass"))
	if err := os.WriteFile(filepath.Join(dir, "pass"), []byte("what nobody knows any more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cairn := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), os.Getenv(product.Env), args...)
		cmd.Env, cmd.Stderr = env, os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("cairn %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	var made struct {
		RecoveryKey string `json:"recovery_key"`
	}
	if err := json.Unmarshal(cairn("init", "--json"), &made); err != nil || made.RecoveryKey == "" {
		t.Fatalf("init: %v", err)
	}
	// A key of the host's own, that is revoked in the end.
	writeKey := filepath.Join(dir, "write.key")
	cairn("key", "add", "--kind", "write", "--label", "oldhost", "--generate", writeKey)

	var options lab.Options
	g := labtest.Start(t, func(o *lab.Options) { options = *o })
	cairn("vm", "add", "web01", "--qmp", g.QMPSocket)
	awaitAgent(t, g)
	cairn("backup", "web01", "--quiet")
	labtest.Shell(t, g, "echo 'what was written last' >>/home/anna/notes.md; sync")
	cairn("backup", "web01", "--quiet")
	d := disaster{repo: filepath.Join(dir, "repo"), recovery: made.RecoveryKey, notes: labtest.Shell(t, g, "cat /home/anna/notes.md"),
		photo: labtest.Shell(t, g, "md5sum </home/anna/photo.jpg"), lab: []string{filepath.Dir(options.Assets.Kernel), options.Dir}}
	if !strings.Contains(d.notes, "what was written last") {
		t.Fatalf("the guest's notes: %q", d.notes)
	}
	g.Close()
	// What is left of the old host is its repository. Of the lab's guest also
	// its kernel and its initrd, which a real VM has on its disks.
	for _, disk := range options.Disks {
		if err := os.Remove(disk.Path); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestRestoreGuide walks the guide on a machine that has nothing: see there.
func TestRestoreGuide(t *testing.T) {
	walk(t, filepath.Join(shortDir(t), "r"), "")
}

// TestRestoreGuideOnDebian is the long leg: the machine is a Debian 12 fresh
// from debootstrap, with its own QEMU, and Cairn is installed from its package.
func TestRestoreGuideOnDebian(t *testing.T) {
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("makes a Debian, 3 minutes and 250 MB the first time; with CAIRN_LONG=1")
	}
	bin := t.TempDir()
	for _, name := range []string{"cairn", "cairn-agent"} {
		if out, err := exec.Command("cp", filepath.Join(filepath.Dir(os.Getenv(product.Env)), name), bin).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	build := exec.Command("../../.ci/deb-host", bin)
	build.Env = append(os.Environ(), "DEB_VERSION=1.0", "DEB_COMPRESS=-Znone")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("deb-host: %v: %s", err, out)
	}
	list, err := filepath.Glob(filepath.Join(bin, "cairn_*.deb"))
	if err != nil || len(list) != 1 {
		t.Fatalf("packages: %v %v", list, err)
	}
	walk(t, debian(t), list[0])
}

// debian gives a copy of a Debian that has what the guide has apt install. It
// is made once, and kept in the lab's cache.
func debian(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("CAIRN_LAB_CACHE")
	if cache == "" {
		cache = "/var/cache/cairn-lab"
	}
	final := filepath.Join(cache, "restore-bookworm-1")
	if _, err := os.Stat(final); err != nil {
		work, err := os.MkdirTemp(cache, "building-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(work) })
		args := []string{"--variant=minbase", "--include=qemu-system-x86,qemu-utils,fuse3,less", "bookworm", filepath.Join(work, "root")}
		if mirror := os.Getenv("CAIRN_LAB_MIRROR"); mirror != "" {
			args = append(args, mirror)
		}
		if out, err := exec.CommandContext(t.Context(), "debootstrap", args...).CombinedOutput(); err != nil {
			t.Skipf("debootstrap: %v: %.500s", err, out)
		}
		if err := os.Rename(filepath.Join(work, "root"), final); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(shortDir(t), "r")
	if out, err := exec.Command("cp", "-a", "--reflink=auto", final, root).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return root
}

// walk walks the guide on a machine with a root folder, in which Cairn is one
// file, or comes in a package.
func walk(t *testing.T, root, deb string) {
	d := before(t)
	m := newMachine(t, root, d.lab...)
	if deb == "" {
		m.copy(os.Getenv(product.Env), "usr/local/bin/cairn", 0o755)
	} else {
		m.copy(deb, "root/cairn.deb", 0o644)
		m.must("dpkg -i /root/cairn.deb && test $(command -v cairn) = /usr/bin/cairn")
	}
	w := &walker{t: t, m: m, d: d, replace: strings.NewReplacer()}
	// The repository's disk: the guide finds it mounted read-only.
	m.copyTree(d.repo, "mnt/disk")
	m.copyTree(d.repo, "mnt/mirror")
	m.must("mount --bind /mnt/disk /mnt/backup && mount -o remount,bind,ro /mnt/backup")
	guide, code := m.types("cairn help restore-guide", "")
	if code != 0 {
		t.Fatal(guide)
	}
	steps := stepsOf(guide)
	done := map[string]int{}
	for _, s := range steps {
		if done[s.section]++; done[s.section] == 1 {
			w.begin(s.section)
		}
		w.walk(s)
		if t.Failed() {
			return
		}
	}
	if len(steps) < 55 || len(done) < 11 {
		t.Errorf("only %d lines in %d sections were walked", len(steps), len(done))
	}
	t.Logf("%d lines in %d sections", len(steps), len(done))
}

// walker is the person with the guide.
type walker struct {
	t       *testing.T
	m       *machine
	d       disaster
	replace *strings.Replacer // what a person puts in for names and IDs
	skip    string            // why the section cannot be walked here
	backups int
	removed int // keys
}

// begin makes what a section is about come true.
func (w *walker) begin(section string) {
	t, m := w.t, w.m
	t.Helper()
	w.skip = ""
	switch section {
	case "ONE DISK OF SEVERAL IS LOST":
		m.must(`cairn init /mnt/small --no-recovery-key --shards 4+2 --quiet $(for i in 1 2 3 4 5 6; do echo --place /mnt/d$i; done) &&
			cairn copy --all --to /mnt/small --to-password-file /root/cairn.key --quiet && rm -r /mnt/small /mnt/d3`)
	case "OBJECT STORAGE":
		w.bucket()
	case "DAMAGE":
		m.must("umount /mnt/backup && mount --bind /mnt/disk /mnt/backup")
		// The newest pack: the first point does not need it.
		pack := m.must("find /mnt/disk/packs -type f -printf '%T@ %s %p\n' | sort -n | awk '$2 > 20000 {p = $3} END {print p}'")
		flip(t, m.path(strings.TrimSpace(pack)))
	case "GOING ON":
		list := m.must("cairn key ls")
		w.replace = strings.NewReplacer("5f1c0b0a", reads(t, list, `(?m)^([0-9a-f]+) +write .*oldhost`), "77a0c1d2", reads(t, list, `(?m)^([0-9a-f]+) +host `))
	}
}

// bucket puts a copy of the repository into object storage.
func (w *walker) bucket() {
	s, why := startBucket(w.t)
	if s == nil {
		w.skip = why
		return
	}
	address := "s3:http://" + s.Address + "/backups/fleet"
	w.replace = strings.NewReplacer("s3:https://s3.example/backups/fleet", address, "myid", s.AccessKey, "mysecret", s.SecretKey)
	w.m.must("export AWS_ACCESS_KEY_ID=" + s.AccessKey + " AWS_SECRET_ACCESS_KEY=" + s.SecretKey)
	w.m.must("cairn init " + address + " --make-bucket --no-recovery-key --quiet && cairn copy --all --to " + address + " --to-password-file /root/cairn.key --quiet")
	w.m.must("unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY")
}

// tolerant keeps a skip for itself.
type tolerant struct {
	testing.TB
	why string
}

func (o *tolerant) Skip(args ...any) {
	o.why = fmt.Sprint(args...)
	runtime.Goexit()
}

// startBucket starts object storage, or says why it cannot be had.
func startBucket(t *testing.T) (s *objectstore.Server, why string) {
	t.Helper()
	o := &tolerant{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s = objectstore.Start(o, objectstore.Versitygw())
	}()
	<-ended
	return s, o.why
}

// reads reads something off a command's output, as a person does.
func reads(t *testing.T, out, pattern string) string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("no %s in\n%s", pattern, out)
	}
	return found[1]
}

// walk does a step, and looks whether it did what the guide says.
func (w *walker) walk(s step) {
	t := w.t
	t.Helper()
	if w.skip != "" {
		t.Logf("NOT WALKED (%s): %s", w.skip, s.line)
		return
	}
	input := map[string]string{"cat >/root/cairn.key": w.d.recovery + "\n", "cat >/root/new.pass": "a passphrase that somebody wrote down\n"}[s.line]
	line := w.replace.Replace(s.line)
	start := time.Now()
	out, code := w.m.types(line, input)
	t.Logf("%.1f s  %s", time.Since(start).Seconds(), line)
	if code != s.code {
		t.Errorf("%s: %s: exit code %d, the guide says %d\n%s", s.section, line, code, s.code, out)
		return
	}
	w.look(s, out)
}

// look judges a step by its outcome, past cairn where that can be.
func (w *walker) look(s step, out string) {
	t := w.t
	t.Helper()
	has := func(words ...string) {
		t.Helper()
		for _, word := range words {
			if !strings.Contains(out, word) {
				t.Errorf("%s: no %q in\n%s", s.line, word, out)
			}
		}
	}
	same := func(file, want string) {
		t.Helper()
		if b, err := os.ReadFile(w.m.path(file)); err != nil || string(b) != want {
			t.Errorf("%s: %s: %v, %.200q", s.line, file, err, b)
		}
	}
	switch line := s.line; {
	case line == "cairn key ls" && s.section == "THE KEY":
		has("recovery key", "in use", "oldhost", "host ")
	case line == "cairn diff web01@latest --stat" || line == "cairn log web01:/home/anna/notes.md":
		has("home")
		if line != "cairn diff web01@latest --stat" {
			has("contents")
		}
	case line == "cat /srv/back/anna/notes.md":
		if strings.TrimSpace(out) != strings.TrimSpace(w.d.notes) {
			t.Errorf("the file restored: %q, the guest had %q", out, w.d.notes)
		}
	case strings.HasPrefix(line, "cp -a /mnt/cairn/"):
		same("srv/notes.md", w.d.notes)
	case line == "cairn boot web01@latest --dir /srv/now --name web01 --detach", line == "cairn boot --dir /srv/now --detach":
		w.asks("srv/now")
	case line == "cairn boot --dir /srv/now --finish":
		if strings.Contains(w.m.must("cat /proc/mounts"), "/srv/now/mnt") {
			t.Error("after --finish the mount is still there")
		}
	case strings.HasPrefix(line, "/srv/web01/start.sh"):
		w.asks("srv/web01")
	case strings.Contains(line, "--to /srv/places"):
		same("srv/places/home/anna/notes.md", w.d.notes)
	case strings.Contains(line, "place ls") && s.code == 3:
		has("away")
	case strings.Contains(line, "place ls"):
		has("any 2 of the 6 places may be lost", "/mnt/new")
	case strings.Contains(line, "--to /srv/s3"):
		same("srv/s3/anna/notes.md", w.d.notes)
	case line == "cairn check --read-data" && s.code == 4:
		has("pack", "web01@")
	case strings.Contains(line, "--to /srv/older"):
		same("srv/older/anna/notes.md", strings.TrimSuffix(w.d.notes, "what was written last\n"))
	case line == "cairn key recovery":
		has("AGE-SECRET-KEY-1")
	case strings.HasPrefix(line, "cairn key add --kind all"):
		if out, code := w.m.types("CAIRN_PASSWORD_FILE=/root/new.pass cairn ls web01@latest:/home", ""); code != 0 || !strings.Contains(out, "anna") {
			t.Errorf("the new passphrase does not open: %d %s", code, out)
		}
	case line == "cairn doctor web01":
		has("web01 guest agent")
	case line == "cairn backup web01":
		w.backups++
		has([]string{"full: read", "incremental: read"}[w.backups-1])
	case strings.HasPrefix(line, "cairn key rm"):
		if left := w.m.must("cairn key ls"); strings.Contains(left, "oldhost") {
			t.Errorf("the old host's key is still there:\n%s", left)
		}
		has([]string{"removed key", "revoked the host key"}[min(w.removed, 1)])
		w.removed++
	}
}

// asks waits for a guest that was booted, and compares its files with those
// of the guest that was.
func (w *walker) asks(dir string) {
	t := w.t
	t.Helper()
	log := w.m.path(dir + "/console.log")
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		b, _ := os.ReadFile(log) // it comes with QEMU
		if strings.Contains(string(b), "BOOTED") {
			break
		}
		if time.Since(start) > patience {
			t.Fatalf("the VM in %s does not boot: %.2000s", dir, b)
		}
	}
	g := lab.Attach(w.m.path(dir))
	if got := labtest.Shell(t, g, "cat /home/anna/notes.md"); got != w.d.notes {
		t.Errorf("the VM in %s has %q, the guest had %q", dir, got, w.d.notes)
	}
	if got := labtest.Shell(t, g, "md5sum </home/anna/photo.jpg"); got != w.d.photo {
		t.Errorf("the VM in %s has a photo of %s, the guest's was %s", dir, got, w.d.photo)
	}
	// The console is for the next boot: its log begins anew.
	if err := os.Truncate(log, 0); err != nil {
		t.Error(err)
	}
}

func (m *machine) copyTree(from, to string) {
	m.t.Helper()
	if out, err := exec.CommandContext(m.t.Context(), "cp", "-a", from, m.path(to)).CombinedOutput(); err != nil {
		m.t.Fatalf("cp: %v: %s", err, out)
	}
}

// flip changes a byte in the middle of a file, whose times stay.
func flip(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// shortDir is t.TempDir with a path that leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn-m-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// awaitAgent waits for the guest's stock agent.
func awaitAgent(t *testing.T, g *lab.Guest) {
	t.Helper()
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(50 * time.Millisecond) {
		var chardevs []struct {
			Label string `json:"label"`
			Open  bool   `json:"frontend-open"`
		}
		if err := g.Command(context.WithoutCancel(t.Context()), "query-chardev", nil, &chardevs); err != nil {
			t.Fatal(err)
		}
		for _, c := range chardevs {
			if c.Label == "qga" && c.Open {
				return
			}
		}
	}
	t.Fatal("the guest agent does not come")
}
