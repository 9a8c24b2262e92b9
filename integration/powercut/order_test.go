package powercut

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/pack"
)

var update = flag.Bool("update", false, "rewrite the goldens of testdata")

// machine is a host with the built cairn, and a VM that is off.
type machine struct {
	dir, cairn string
	disk       []byte
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	for _, tool := range []string{"strace", "qemu-storage-daemon"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir, err := os.MkdirTemp("", "cairn-order-") // a short path: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &machine{dir: dir, cairn: filepath.Join(dir, "cairn"), disk: make([]byte, 26<<20)}
	// More than one pack, of what does not compress.
	_, _ = rand.NewChaCha8([32]byte{1}).Read(m.disk[:25<<20]) // never fails
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", m.cairn, "cairn/cmd/cairn")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(m.path("vda.raw"), m.disk, 0o600); err != nil {
		t.Fatal(err)
	}
	m.run(t, "init", "--no-encryption")
	m.run(t, "vm", "add", "web01", "--qmp", "/nonexistent", "--disk", "vda="+m.path("vda.raw")+",format=raw")
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CAIRN_REPOSITORY="+m.path("repo"), "CAIRN_STATE_DIR="+m.path("state"), "CAIRN_CACHE_DIR="+m.path("cache"),
		"CAIRN_CONFIG_DIR="+m.path("conf"))
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := m.command(ctx, append([]string{m.cairn}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("cairn %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// traced runs a backup under strace.
func (m *machine) traced(t *testing.T, options ...string) (out string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	argv := append([]string{"strace", "-f", "-y", "--seccomp-bpf", "-s", "0", "-o", m.path("trace")}, options...)
	b, err := m.command(ctx, append(argv, m.cairn, "backup", "web01", "--every-block")...).CombinedOutput()
	return string(b), err
}

// Goal: who changes the order in which a backup makes things durable sees it in
// a diff. Method: the built program under strace, the calls that matter of each
// kind of object, and the order between kinds that is promised (STORE-RULES.md
// section 1.2). -update rewrites the golden.
func TestOrderOfCalls(t *testing.T) {
	m := newMachine(t)
	if out, err := m.traced(t, "-e", "trace=openat,write,pwrite64,fsync,fdatasync,linkat,renameat,renameat2,unlinkat,mkdirat,mmap,msync"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(m.path("trace"))
	if err != nil {
		t.Fatal(err)
	}
	calls, kinds := parseTrace(string(text)), m.packKinds(t)
	got := m.order(calls, kinds)
	golden := filepath.Join("testdata", "order.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the order of calls has changed (-update accepts it):\n%s\nwant:\n%s", got, want)
	}
	if strings.Contains(string(want), broken) {
		t.Error("the golden has a broken promise")
	}
	m.orderIsSeen(t, calls, kinds, got)
	m.failedSyncs(t)
}

func (m *machine) order(calls []call, kinds map[string]string) string {
	o := newOrder(m.path("repo"), m.path("cache"), calls)
	o.kinds = kinds
	return o.golden()
}

// orderIsSeen takes calls out of the trace, and moves some: the description
// must change, or say that a promise is broken.
func (m *machine) orderIsSeen(t *testing.T, calls []call, kinds map[string]string, right string) {
	t.Helper()
	without := func(name, on string) []call {
		return slices.DeleteFunc(slices.Clone(calls), func(c call) bool { return c.name == name && strings.Contains(c.args, on) })
	}
	early := slices.Clone(calls)
	for i, c := range early {
		if c.name == "openat" && strings.Contains(c.args, "/points/.tmp-") {
			early[i].start = 0
		}
	}
	for name, c := range map[string]struct {
		calls  []call
		breaks bool // a promise
	}{
		"no fsync of files":              {without("fsync", tmpName), false},
		"no fsync of the packs' folder":  {without("fsync", "/packs/"), true},
		"no fsync of folders":            {without("fsync", m.path("repo")), true},
		"no fsync of new folders' names": {without("fsync", m.path("repo")+">"), true},
		"no sync of the index's log":     {without("msync", ""), true},
		"commits begun too early":        {early, true},
	} {
		got := m.order(c.calls, kinds)
		if got == right || c.breaks != strings.Contains(got, broken) {
			t.Errorf("%s: not seen:\n%s", name, got)
		}
	}
}

// tmpName is part of the names of files that are no objects yet.
const tmpName = "/.tmp-"

// packKinds says of each pack, by its hash, what is in it.
func (m *machine) packKinds(t *testing.T) map[string]string {
	t.Helper()
	d, err := local.Open(m.path("repo"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close() // read only: nothing to lose
	config, err := chunkstore.ReadConfig(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(t.Context(), d, config, "")
	if err != nil {
		t.Fatal(err)
	}
	store, kinds := chunkstore.NewStore(d, config, keys), map[string]string{}
	err = store.Packs(t.Context(), func(ref chunkstore.PackRef, _ int64) error {
		f, err := store.ReadFooter(t.Context(), ref)
		if err == nil {
			kinds[ref.Hash.String()] = map[pack.Kind]string{pack.KindData: "DATA", pack.KindMap: "MAP"}[f.Kind]
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return kinds
}

// failedSyncs lets fsyncs of a folder fail under the real program: it says so,
// what was confirmed before stays, and the next run is as any other.
func (m *machine) failedSyncs(t *testing.T) {
	t.Helper()
	points := func() int { return strings.Count(m.run(t, "points", "--json"), `"consistency"`) }
	for i, folder := range []string{"sessions", "points"} {
		m.disk[i] ^= 1
		if err := os.WriteFile(m.path("vda.raw"), m.disk, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := m.traced(t, "-P", filepath.Join(m.path("repo"), folder), "-e", "trace=fsync", "-e", "inject=fsync:error=EIO")
		if err == nil || !strings.Contains(out, "input/output error") {
			t.Errorf("fsync of %s fails: %v: %s", folder, err, out)
		}
		if strings.Contains(out, "web01@") {
			t.Errorf("fsync of %s fails, and a point is reported: %s", folder, out)
		}
	}
	before := points()
	m.run(t, "backup", "web01", "--every-block")
	if n := points(); n != before+1 {
		t.Errorf("%d points became %d", before, n)
	}
	m.run(t, "check", "--read-data")
	m.run(t, "restore", "web01@latest", "--disk", "vda", "--to", m.path("restored"), "--quiet")
	if got, err := os.ReadFile(m.path("restored")); err != nil || !bytes.Equal(got, m.disk) {
		t.Errorf("what is restored is not the disk: %v", err)
	}
}

// call is one system call that succeeded. Calls overlap: start and end are the
// lines of the trace.
type call struct {
	start, end int
	name       string
	args       string
	result     string
}

var (
	callBegins  = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	callResumes = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	quoted      = regexp.MustCompile(`"([^"]*)"`)
	descriptor  = regexp.MustCompile(`^\d+<([^>]*)>`)
)

func parseTrace(text string) (calls []call) {
	open := map[string]call{} // by thread
	for n, line := range strings.Split(text, "\n") {
		var thread, rest string
		var c call
		if m := callBegins.FindStringSubmatch(line); m != nil {
			thread, c, rest = m[1], call{start: n, name: m[2]}, m[3]
			if begun, unfinished := strings.CutSuffix(rest, " <unfinished ...>"); unfinished {
				c.args = begun
				open[thread] = c
				continue
			}
		} else if m := callResumes.FindStringSubmatch(line); m != nil {
			c, rest = open[m[1]], m[2]
			rest = c.args + rest
		} else {
			continue
		}
		cut := strings.LastIndex(rest, " = ")
		if cut < 0 || strings.HasPrefix(rest[cut+3:], "-1") {
			continue
		}
		c.args, c.result, c.end = rest[:cut], rest[cut+3:], n
		calls = append(calls, c)
	}
	slices.SortFunc(calls, func(a, b call) int { return cmp.Compare(a.end, b.end) })
	return calls
}

// object is a file that was made under a temporary name.
type object struct {
	temporary, name string
	steps           []string
	made, durable   int // lines: when its making began, when its name was durable
	folder          string
	linked          int
}

// order is what a trace says of a repository and a cache.
type order struct {
	repo, cache string
	kinds       map[string]string // of packs, by hash
	objects     []*object
	folders     map[string]int // that were made, and when their names were durable; math.MaxInt: never
	lists       map[string]int // of the index, by hash: when they were begun
	logSyncs    []int          // when a sync of the index's log began
	aliases     map[string]string
}

const broken = "BROKEN"

func newOrder(repo, cache string, calls []call) *order {
	o := &order{repo: repo, cache: cache, folders: map[string]int{}, lists: map[string]int{}, aliases: map[string]string{}}
	temporary, maps := map[string]*object{}, map[string]string{}
	waiting := map[string]string{} // folders that were made, to the folder they are in
	for _, c := range calls {
		names := quoted.FindAllStringSubmatch(c.args, -1)
		on := ""
		if m := descriptor.FindStringSubmatch(c.args); m != nil {
			on = m[1]
		}
		switch c.name {
		case "openat":
			name := names[0][1]
			if !strings.Contains(c.args, "O_CREAT") {
				continue
			}
			if strings.Contains(name, "/index/lists/") {
				o.lists[path.Base(name)] = c.start
			}
			if o.counts(name) {
				x := &object{temporary: name, made: c.start, folder: path.Dir(name), steps: []string{"create"}}
				if strings.Contains(c.args, "O_EXCL") {
					x.steps[0] = "create new"
				}
				temporary[name] = x
				o.objects = append(o.objects, x)
			}
		case "write", "pwrite64":
			if x := temporary[on]; x != nil && x.steps[len(x.steps)-1] != "write" {
				x.steps = append(x.steps, "write")
			}
		case "fsync", "fdatasync":
			if x := temporary[on]; x != nil {
				x.steps = append(x.steps, c.name)
			}
			for _, x := range o.objects {
				if x.folder == on && x.linked > 0 && x.durable == 0 && c.start > x.linked {
					x.durable = c.end
					x.steps = append(x.steps, "fsync folder")
				}
			}
			for made, parent := range waiting {
				if parent == on {
					o.folders[made] = c.end
					delete(waiting, made)
				}
			}
		case "linkat", "renameat", "renameat2":
			if x := temporary[names[0][1]]; x != nil {
				x.steps, x.name, x.linked = append(x.steps, strings.TrimRight(c.name, "at2")), names[1][1], c.end
			}
		case "unlinkat":
			if x := temporary[names[0][1]]; x != nil {
				x.steps = append(x.steps, "remove temporary")
			}
		case "mkdirat":
			if strings.HasPrefix(names[0][1], repo) {
				waiting[names[0][1]] = path.Dir(names[0][1])
				o.folders[names[0][1]] = math.MaxInt
			}
		case "mmap":
			for _, part := range strings.Split(c.args, ", ") {
				if m := descriptor.FindStringSubmatch(part); m != nil {
					maps[c.result] = m[1]
				}
			}
		case "msync":
			if address, _, _ := strings.Cut(c.args, ","); strings.HasSuffix(maps[address], ".mem") {
				o.logSyncs = append(o.logSyncs, c.start)
			}
		}
	}
	return o
}

// counts says whether a file is one whose making is promised.
func (o *order) counts(name string) bool {
	return strings.HasPrefix(name, o.repo+"/") || strings.HasPrefix(name, o.cache+"/") && strings.HasPrefix(path.Base(name), "STATE")
}

var hexName = regexp.MustCompile(`[0-9a-f]{32,}`)

// kind gives an object's name without what differs from run to run. The first
// session that committed is the point, another is its catalogue.
func (o *order) kind(name string) string {
	name, ours := strings.CutPrefix(name, o.repo+"/")
	if !ours {
		return "index/" + path.Base(name)
	}
	return hexName.ReplaceAllStringFunc(name, func(s string) string {
		if k := o.kinds[s]; k != "" {
			return k
		}
		if o.aliases[s] == "" {
			return "SESSION"
		}
		return o.aliases[s]
	})
}

// golden describes the trace.
func (o *order) golden() string {
	for _, x := range o.objects {
		if path.Base(path.Dir(x.name)) == "points" && len(o.aliases) < 2 {
			o.aliases[path.Base(x.name)] = []string{"POINT", "CATALOGUE"}[len(o.aliases)]
		}
	}
	by := map[string][]*object{}
	for _, x := range o.objects {
		by[o.kind(x.name)] = append(by[o.kind(x.name)], x)
	}
	var b strings.Builder
	fmt.Fprintln(&b, "# What the first backup of a VM asks of the kernel: for each kind of object its")
	fmt.Fprintln(&b, "# calls in their order, and between kinds the order that is promised. It is")
	fmt.Fprintln(&b, "# rewritten with: go test ./integration/powercut -run OrderOfCalls -update")
	for _, kind := range slices.Sorted(maps.Keys(by)) {
		all := map[string]int{}
		for _, x := range by[kind] {
			all[strings.Join(x.steps, ", ")]++
		}
		for _, steps := range slices.Sorted(maps.Keys(all)) {
			fmt.Fprintf(&b, "%s (%d): %s\n", kind, all[steps], steps)
		}
	}
	fmt.Fprintln(&b)
	made := map[string]bool{}
	for folder := range o.folders {
		made[strings.TrimPrefix(o.kind(folder), o.repo+"/")] = true
	}
	o.line(&b, "folders that were made: "+strings.Join(slices.Sorted(maps.Keys(made)), ", ")+": durable before a name in them", o.foldersFirst())
	for _, p := range [][2]string{
		{"sessions/POINT", "packs/POINT/DATA"},
		{"packs/POINT/DATA", "packs/POINT/MAP"},
		{"packs/POINT/MAP", "points/POINT"},
		{"points/POINT", "sessions/CATALOGUE"},
		{"sessions/CATALOGUE", "points/CATALOGUE"},
		{"points/POINT", "index/STATE"},
	} {
		o.line(&b, fmt.Sprintf("%s durable before %s is begun", p[0], p[1]), before(by[p[0]], by[p[1]]))
	}
	listed := len(by["packs/POINT/DATA"]) > 0
	for _, x := range by["packs/POINT/DATA"] {
		at := o.lists[path.Base(x.name)]
		listed = listed && x.durable > 0 && x.durable < at && o.syncedAfter(at)
	}
	o.line(&b, "each packs/POINT/DATA durable before the index's list of it is begun, and the index's log synced behind that", listed)
	point := by["points/POINT"]
	o.line(&b, "the index's log synced behind points/POINT", len(point) == 1 && point[0].durable > 0 && o.syncedAfter(point[0].durable))
	return b.String()
}

func (o *order) line(b *strings.Builder, what string, kept bool) {
	fmt.Fprintf(b, "%s: %s\n", what, map[bool]string{true: "kept", false: broken}[kept])
}

func (o *order) syncedAfter(line int) bool {
	return slices.ContainsFunc(o.logSyncs, func(at int) bool { return at > line })
}

// foldersFirst says whether each folder's name was durable before the first name
// in it.
func (o *order) foldersFirst() bool {
	for _, x := range o.objects {
		for folder := x.folder; folder != o.repo && strings.HasPrefix(folder, o.repo); folder = path.Dir(folder) {
			if at, made := o.folders[folder]; made && at > x.linked {
				return false
			}
		}
	}
	return len(o.folders) > 0
}

// before says whether all of some objects were durable before the first of
// others was begun.
func before(first, then []*object) bool {
	for _, a := range first {
		for _, b := range then {
			if a.durable == 0 || a.durable > b.made {
				return false
			}
		}
	}
	return len(first) > 0 && len(then) > 0
}
