package killing

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// held is a point that is known to be there, or to have been forgotten.
type held struct {
	id, vm    string
	time      time.Time // known when it was listed
	sum       [sha256.Size]byte
	forgotten bool
}

// story is one repository's.
type story struct {
	t    *testing.T
	rnd  *rand.Rand
	seed uint64
	dir  string

	here, there *host // two hosts of one repository; the VMs are on the first
	copies      *host // the first host, with another repository
	vms         []*vm
	places      *places // nil: the repository is one folder

	points []*held
	// doubtful are backups that were killed: their points may be there.
	doubtful []*held
	usual    map[string]time.Duration // how long a command takes
	kills    int
	hits     map[string]int
}

func newStory(t *testing.T, seed uint64) *story {
	t.Helper()
	s := &story{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), dir: keep(t), hits: map[string]int{}, usual: map[string]time.Duration{
		"backup": 200 * time.Millisecond}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("CAIRN_KILL_SEED=%d, after %d kills: %v", seed, s.kills, s.hits)
		}
	})
	return s
}

// begin makes the repositories and the VMs.
func (s *story) begin(args ...string) {
	s.t.Helper()
	repo, copies := filepath.Join(s.dir, "repo"), filepath.Join(s.dir, "copies")
	key, copiesKey := initRepo(s.t, s.dir, repo, args...), initRepo(s.t, s.dir, copies)
	s.here, s.there = newHost(s.t, s.dir, "here", repo, key), newHost(s.t, s.dir, "there", repo, key)
	s.copies = &host{dir: s.here.dir, repo: copies, key: copiesKey}
	for name, format := range map[string]string{"web01": "raw", "db01": "qcow2"} {
		s.vms = append(s.vms, newVM(s.t, s.here, name, format))
	}
	slices.SortFunc(s.vms, func(a, b *vm) int { return strings.Compare(a.name, b.name) })
	for _, what := range []string{"backup", "backup", "check", "copy", "gc", "catalogue", "index"} {
		if j := s.job(what); j != nil { // the measure of how long each takes
			s.finish([]*job{j})
		}
	}
	s.look()
}

// job is one run of cairn in a round.
type job struct {
	what  string
	host  *host
	args  []string
	vm    *vm   // of a backup
	point *held // of a backup, that it makes; of a forget
	run   *run
	kill  time.Duration // when to kill it after its start; < 0: not at all
}

// alive gives the points that are there.
func (s *story) alive() (list []*held) {
	for _, p := range s.points {
		if !p.forgotten {
			list = append(list, p)
		}
	}
	return list
}

// job makes one up; nil if there is nothing to do it with.
func (s *story) job(what string) *job {
	j := &job{what: what, host: s.here, kill: -1}
	switch what {
	case "backup":
		j.vm = s.vms[s.rnd.IntN(len(s.vms))]
		j.args = []string{"backup", j.vm.name, "--json", "--quiet"}
		if s.rnd.IntN(2) == 0 {
			j.args = append(j.args, "--every-block")
		}
		if s.rnd.IntN(4) == 0 {
			j.args = append(j.args, "--full-read")
		}
	case "forget":
		alive := s.alive()
		if len(alive) < 3 {
			return nil
		}
		j.point = alive[s.rnd.IntN(len(alive))]
		j.args = []string{"forget", j.point.id, "--quiet", "--force"}
	case "gc":
		if s.rnd.IntN(2) == 0 {
			j.host = s.there
		}
		j.args = []string{"gc", "--json", "--quiet", "--wait", []string{"0s", "1s", "3s"}[s.rnd.IntN(3)], "--rewrite", []string{"50", "95"}[s.rnd.IntN(2)]}
	case "check":
		j.args = []string{"check", "--repair", "--read-data", "--quiet"}
	case "copy":
		j.args = []string{"copy", "--all", "--to", s.copies.repo, "--to-password-file", s.copies.key, "--quiet"}
	case "catalogue":
		alive := s.alive()
		j.args = []string{"catalogue", "--rebuild", "--quiet", alive[s.rnd.IntN(len(alive))].id}
	case "index":
		j.args = []string{"repair", "index", "--quiet"}
	case "places":
		j.args = []string{"repair", "places", "--quiet"}
	default:
		panic("internal error: " + what)
	}
	return j
}

// weights say how often each is done.
var weights = map[string]int{"backup": 9, "forget": 3, "gc": 5, "check": 2, "copy": 2, "catalogue": 1, "index": 1}

// pick chooses by weight.
func (s *story) pick() *job {
	w := maps.Clone(weights)
	if len(s.alive()) > 12 {
		w["forget"] = 12
	}
	if s.places != nil {
		w["places"] = 3
	}
	kinds := slices.Sorted(maps.Keys(w))
	for {
		total := 0
		for _, k := range kinds {
			total += w[k]
		}
		n := s.rnd.IntN(total)
		for _, k := range kinds {
			if n -= w[k]; n < 0 {
				if j := s.job(k); j != nil {
					return j
				}
				break
			}
		}
	}
}

// round does one thing, or two at once, and kills most of them.
func (s *story) round() {
	s.t.Helper()
	jobs := []*job{s.pick()}
	if s.rnd.IntN(5) < 2 {
		if j := s.pick(); s.together(jobs[0], j) {
			jobs = append(jobs, j)
		}
	}
	for _, j := range jobs {
		if s.rnd.IntN(6) > 0 {
			j.kill = time.Duration(s.rnd.Int64N(int64(max(s.usual[j.what], 10*time.Millisecond)) * 11 / 10))
		}
	}
	s.finish(jobs)
	if s.rnd.IntN(8) == 0 {
		s.dayPasses()
	}
}

// together says whether two jobs may run at the same time and both end well.
func (s *story) together(a, b *job) bool {
	switch {
	case a.vm != nil && a.vm == b.vm: // cairn says that another backup of this VM runs
		return false
	case a.point != nil && a.point == b.point:
		return false
	case b.what == "forget" && a.what == "forget":
		return true
	}
	// What is being read may be forgotten, and then be gone.
	reads := func(j *job) bool { return j.what == "copy" || j.what == "catalogue" }
	return !(reads(a) && b.what == "forget" || reads(b) && a.what == "forget")
}

// finish runs jobs to their ends, and judges them.
func (s *story) finish(jobs []*job) {
	s.t.Helper()
	for _, j := range jobs {
		if j.vm != nil {
			j.vm.change(s.t, s.rnd)
			j.point = &held{vm: j.vm.name, sum: sha256.Sum256(j.vm.disk)}
		}
	}
	stop := s.places.flap(s.rnd)
	var wg sync.WaitGroup
	for _, j := range jobs {
		j.run = j.host.start(s.t, j.args...)
		wg.Go(func() { s.kill(j) })
	}
	wg.Wait()
	stop()
	for _, j := range jobs {
		s.judge(j, len(jobs) == 1)
	}
}

// kill kills a job when its time has come, and waits for its end.
func (s *story) kill(j *job) {
	if j.kill >= 0 {
		select {
		case <-j.run.done:
		case <-time.After(j.kill):
			j.run.signal(s.t, syscall.SIGKILL)
		}
	}
	j.run.code()
}

// judge takes note of what a job did.
func (s *story) judge(j *job, alone bool) {
	s.t.Helper()
	code := j.run.code()
	if code == killed {
		if j.kill < 0 {
			s.t.Errorf("it hung: %s", j.run)
		}
		s.kills++
		s.hits[j.what]++
	} else if alone && code == exitOK {
		s.usual[j.what] = (s.usual[j.what] + j.run.took) / 2
	}
	allowed := code == killed || code == exitOK
	switch j.what {
	case "backup":
		id := j.run.pointOf()
		switch {
		case id != "":
			j.point.id = id
			s.points = append(s.points, j.point)
			allowed = allowed || j.run.warned(code)
		case code == killed:
			s.doubtful = append(s.doubtful, j.point)
		default:
			allowed = false
		}
	case "forget":
		j.point.forgotten = j.point.forgotten || code == exitOK
		if code != exitOK {
			s.doubtful = append(s.doubtful, j.point)
		}
	case "places":
		if code == exitOK {
			s.places.repaired()
		}
	case "gc": // what was killed before keeps it from its end for a day
		allowed = allowed || code == exitWarnings
	}
	if !allowed && !s.places.excuse(j, code) {
		s.t.Fatalf("exit code %d: %s", code, j.run)
	}
}

// stopped stops a backup, lets gc go to its end, and lets the backup go on. With
// fence a day passes meanwhile: then gc decides against the backup.
func (s *story) stopped(fence bool) {
	s.t.Helper()
	j, g := s.job("backup"), s.job("gc")
	j.vm.change(s.t, s.rnd)
	j.point = &held{vm: j.vm.name, sum: sha256.Sum256(j.vm.disk)}
	j.run = j.host.start(s.t, j.args...)
	select {
	case <-j.run.done:
	case <-time.After(time.Duration(s.rnd.Int64N(int64(s.usual["backup"])))):
		j.run.signal(s.t, syscall.SIGSTOP)
	}
	if fence {
		s.dayPasses()
	}
	s.finish([]*job{g})
	j.run.signal(s.t, syscall.SIGCONT)
	code, id := j.run.code(), j.run.pointOf()
	s.hits["stopped"]++
	switch {
	case id != "" && (code == exitOK || j.run.warned(code) || s.places.excuse(j, code) || fence && code == exitWarnings):
		// A warning after a day: gc swept up the file that a catalogue was in.
		j.point.id = id
		s.points = append(s.points, j.point)
	case fence && id == "" && code == exitFailed:
		s.hits["fenced"]++
	default:
		s.t.Fatalf("exit code %d, stopped during gc, fenced %v: %s\n%s", code, fence, j.run, g.run)
	}
}

// dayPasses makes everything that says when it was written two days older. No
// clock is turned and no limit of cairn's is lowered: the place's own times say
// that whatever was killed gave no sign of life for that long.
func (s *story) dayPasses() {
	s.t.Helper()
	for _, top := range s.tops() {
		err := filepath.WalkDir(top, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return ignoreGone(err)
			}
			info, err := e.Info()
			if err == nil {
				at := info.ModTime().Add(-48 * time.Hour)
				err = os.Chtimes(name, at, at)
			}
			return ignoreGone(err)
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func ignoreGone(err error) error {
	if os.IsNotExist(err) { // of a cairn that runs
		return nil
	}
	return err
}

// tops are the folders that hold the repositories.
func (s *story) tops() []string {
	tops := s.folders()
	if s.copies != nil {
		tops = append(tops, s.copies.repo)
	}
	return tops
}

// folders are the repository's.
func (s *story) folders() []string {
	if s.places != nil {
		return s.places.all()
	}
	return []string{s.here.repo}
}

// look compares what is listed with what must be, and restores some of it.
func (s *story) look() {
	s.t.Helper()
	there := map[string]listed{}
	for _, p := range s.here.points(s.t) {
		there[p.ID] = p
	}
	for _, p := range s.points {
		l, ok := there[p.id]
		switch {
		case ok && p.forgotten:
			s.t.Fatalf("point %s was forgotten, and is listed", p.id)
		case !ok && !p.forgotten && slices.Contains(s.doubtful, p): // forget was killed behind its work
			p.forgotten = true
		case !ok && !p.forgotten:
			s.t.Fatalf("point %s of %s was reported, and is not listed", p.id, p.vm)
		}
		if ok {
			p.time = l.Time
		}
		delete(there, p.id)
	}
	for id, l := range there { // a backup was killed behind its commit
		i := slices.IndexFunc(s.doubtful, func(p *held) bool { return p.id == "" && p.vm == l.VM })
		if i < 0 {
			s.t.Fatalf("point %s of %s is listed, and no backup of it was killed", id, l.VM)
		}
		p := s.doubtful[i]
		p.id, p.time = id, l.Time
		s.points = append(s.points, p)
		s.restored(s.here, id, p)
		s.hits["committed and killed"]++
	}
	s.doubtful = nil
	if alive := s.alive(); len(alive) > 0 {
		s.restored(s.here, alive[len(alive)-1].id, alive[len(alive)-1])
		p := alive[s.rnd.IntN(len(alive))]
		s.restored(s.here, p.id, p)
	}
	if s.places.whole() {
		s.here.must(s.t, "check", "--quiet")
	}
}

// restored compares a point with what it must hold.
func (s *story) restored(h *host, id string, want *held) {
	s.t.Helper()
	to := filepath.Join(s.dir, "restored")
	h.must(s.t, "restore", id, "--disk", "vda", "--to", to, "--overwrite", "--quiet")
	got, err := os.ReadFile(to)
	if err != nil {
		s.t.Fatal(err)
	}
	if sha256.Sum256(got) != want.sum {
		s.t.Fatalf("point %s of %s is not what was backed up", id, want.vm)
	}
}

// end: all is there, and nothing else.
func (s *story) end() {
	s.t.Helper()
	for _, p := range s.alive() {
		s.restored(s.here, p.id, p)
	}
	s.here.must(s.t, "check", "--read-data")
	s.endCopies()
	s.quiet()
	for _, p := range s.alive() {
		s.restored(s.here, p.id, p)
	}
	s.here.must(s.t, "check", "--read-data")
	// The other way to see what nobody needs: nobody needs anything.
	for _, p := range s.alive() {
		s.here.must(s.t, "forget", p.id, "--force", "--quiet")
		p.forgotten = true
	}
	s.quiet()
	for file, name := range s.files() {
		kind, _, _ := strings.Cut(name, "/")
		switch kind {
		case "packs", "sessions", "forwards", "beats", "collectors", "repair":
			s.t.Errorf("nobody needs anything, and %s is left", file)
		case "points":
			if !isAbort(file) {
				s.t.Errorf("all is forgotten, and %s is left", file)
			}
		}
	}
}

// isAbort says whether a decision is an abort, which stays for ever.
func isAbort(file string) bool {
	b, err := os.ReadFile(file)
	return err == nil && strings.HasPrefix(string(b), "CAIRNREC\x01\x03")
}

// quiet runs gc with nobody else there and a day later: two runs leave nothing
// to do for a third.
func (s *story) quiet() {
	s.t.Helper()
	for range 2 {
		s.dayPasses()
		s.here.must(s.t, "gc", "--quiet", "--wait", "0s", "--keep-failed", "0s")
	}
	before := s.files()
	s.here.must(s.t, "gc", "--quiet", "--wait", "0s", "--keep-failed", "0s")
	if after := s.files(); !maps.Equal(before, after) {
		s.t.Errorf("two quiet runs of gc left something to do for a third:\n%s\n\n%s", before, after)
	}
	for file, name := range before {
		if strings.Contains(name, "/.tmp-") || strings.HasPrefix(name, "beats/") || strings.HasPrefix(name, "collectors/") {
			s.t.Errorf("%s is left", file)
		}
	}
}

// files lists what lies in the repository: objects' names by their files.
func (s *story) files() map[string]string {
	s.t.Helper()
	names := map[string]string{}
	for _, top := range s.folders() {
		err := filepath.WalkDir(top, func(file string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				names[file] = strings.TrimPrefix(file, top+"/")
			}
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return names
}

// endCopies brings the second repository up to date and compares all of it.
func (s *story) endCopies() {
	s.t.Helper()
	if s.copies == nil {
		return
	}
	s.here.must(s.t, "copy", "--all", "--to", s.copies.repo, "--to-password-file", s.copies.key, "--quiet")
	key := func(vm string, at time.Time) string { return fmt.Sprint(vm, at.UnixNano()) }
	there := map[string]string{}
	for _, p := range s.copies.points(s.t) {
		if there[key(p.VM, p.Time)] != "" {
			s.t.Errorf("point %s of %s was copied twice", p.ID, p.VM)
		}
		there[key(p.VM, p.Time)] = p.ID
	}
	known := 0
	for _, p := range s.points {
		id, ok := there[key(p.vm, p.time)]
		if !ok && !p.forgotten {
			s.t.Errorf("point %s of %s was not copied", p.id, p.vm)
		}
		if ok {
			known++
			s.restored(s.copies, id, p)
		}
	}
	if known != len(there) {
		s.t.Errorf("%d copies of %d are of no point that there was", len(there)-known, len(there))
	}
	s.copies.must(s.t, "check", "--read-data", "--quiet")
}
