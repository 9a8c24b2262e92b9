package killing

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// hosts is how many back up at once.
const hosts = 8

// TestManyHosts: eight hosts, each with a VM, state and cache of its own and half
// of them with keys that only write, back up into one repository at once, while
// others collect, check every byte, and forget. Some of all of them are killed.
func TestManyHosts(t *testing.T) {
	available(t)
	rounds := 2
	if os.Getenv("CAIRN_LONG") != "" {
		rounds = 40
	}
	s := newStory(t, seed(t))
	repo := filepath.Join(s.dir, "repo")
	key := initRepo(t, s.dir, repo)
	s.here, s.there = newHost(t, s.dir, "here", repo, key), newHost(t, s.dir, "there", repo, key)
	for i := range hosts {
		h := newHost(t, s.dir, fmt.Sprintf("hv%02d", i), repo, key)
		if i%2 == 1 {
			h.key = filepath.Join(h.dir, "key")
			s.here.must(t, "key", "add", "--kind", "write", "--label", h.name, "--generate", h.key)
		}
		s.vms = append(s.vms, newVM(t, h, fmt.Sprintf("web%02d", i), []string{"raw", "raw", "qcow2"}[i%3]))
	}
	many := &manyHosts{story: s}
	var writers, others sync.WaitGroup
	done := make(chan struct{})
	for i, v := range s.vms {
		writers.Go(func() { many.backUp(v, rand.New(rand.NewPCG(s.seed, uint64(10+i))), rounds) })
	}
	for i, loop := range []struct {
		host *host
		args []string
		kill bool
	}{
		{s.here, []string{"gc", "--quiet", "--wait", "1s", "--rewrite", "90"}, true},
		{s.there, []string{"check", "--read-data"}, false},
	} {
		others.Go(func() {
			many.repeat(loop.host, rand.New(rand.NewPCG(s.seed, uint64(100+i))), loop.kill, done, loop.args...)
		})
	}
	others.Go(func() { many.forget(rand.New(rand.NewPCG(s.seed, 200)), done) })
	writers.Wait()
	close(done)
	others.Wait()
	if t.Failed() {
		t.FailNow()
	}
	s.look()
	confirmed := len(s.alive())
	s.end()
	t.Logf("seed %d: %d hosts, %d rounds: %d points confirmed, %d of them forgotten meanwhile; killed %v; %d runs of gc, %d of check", s.seed, hosts, rounds,
		len(s.points), len(s.points)-confirmed, s.hits, many.runs["gc"], many.runs["check"])
}

// manyHosts is a story that is told by many at once.
type manyHosts struct {
	*story
	mu   sync.Mutex
	runs map[string]int
}

// backUp makes points of one VM, and kills some of the runs.
func (m *manyHosts) backUp(v *vm, rnd *rand.Rand, rounds int) {
	for range rounds {
		v.change(m.t, rnd)
		p := &held{vm: v.name, sum: sha256.Sum256(v.disk)}
		j := &job{what: "backup", kill: -1, run: v.host.start(m.t, "backup", v.name, "--json", "--quiet")}
		if rnd.IntN(4) == 0 {
			j.kill = time.Duration(rnd.IntN(1000)) * time.Millisecond
		}
		m.kill(j)
		m.note(j, p)
	}
}

// note takes a backup's end into the story.
func (m *manyHosts) note(j *job, p *held) {
	m.mu.Lock()
	defer m.mu.Unlock()
	code, id := j.run.code(), j.run.pointOf()
	if code == killed && j.kill >= 0 {
		m.kills++
		m.hits[j.what]++
	}
	switch {
	case id != "":
		p.id = id
		m.points = append(m.points, p)
	case code == killed && j.kill >= 0:
		m.doubtful = append(m.doubtful, p)
	default:
		m.t.Errorf("exit code %d: %s", code, j.run)
	}
}

// repeat runs one command again and again until the backups have ended.
func (m *manyHosts) repeat(h *host, rnd *rand.Rand, kill bool, done <-chan struct{}, args ...string) {
	for !ended(done) && !m.t.Failed() {
		j := &job{what: args[0], kill: -1, run: h.start(m.t, args...)}
		if kill && rnd.IntN(4) == 0 {
			j.kill = time.Duration(rnd.IntN(300)) * time.Millisecond
		}
		m.kill(j)
		code := j.run.code()
		m.mu.Lock()
		if m.runs == nil {
			m.runs = map[string]int{}
		}
		m.runs[args[0]]++
		switch {
		case code == killed && j.kill >= 0:
			m.hits[j.what]++
		case code != exitOK && !(args[0] == "gc" && code == exitWarnings):
			m.t.Errorf("exit code %d: %s", code, j.run)
		}
		m.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
	}
}

// forget forgets points while others are made and collected.
func (m *manyHosts) forget(rnd *rand.Rand, done <-chan struct{}) {
	for !ended(done) && !m.t.Failed() {
		time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		m.mu.Lock()
		alive := m.alive()
		m.mu.Unlock()
		if len(alive) < hosts/2 {
			continue
		}
		p := alive[rnd.IntN(len(alive))]
		r := m.there.start(m.t, "forget", p.id, "--force", "--quiet")
		if code := r.code(); code != exitOK {
			m.t.Errorf("exit code %d: %s", code, r)
		}
		m.mu.Lock()
		p.forgotten = true
		m.mu.Unlock()
	}
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
