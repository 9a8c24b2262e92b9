package integration

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/object"
	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestInsideAgentInRealGuest freezes a guest of QEMU's, its root too, by the
// real agent on its real port, and lets everything die that can: the guest
// writes again each time, and soon.
func TestInsideAgentInRealGuest(t *testing.T) {
	labtest.Available(t)
	g := labtest.Start(t, func(o *lab.Options) {
		o.Inject = map[string]string{"cairn-agent": filepath.Join(filepath.Dir(os.Getenv(cairnEnv)), "cairn-agent")}
	})
	labtest.Shell(t, g, "sh -c 'while echo x >>/srv/written; do usleep 20000; done' >/dev/null 2>&1 </dev/null &")
	size := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(labtest.Shell(t, g, "stat -c %s /srv/written")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	mustStand := func() {
		t.Helper()
		before := size()
		time.Sleep(500 * time.Millisecond)
		if after := size(); after != before {
			t.Errorf("the guest wrote %d bytes while it was frozen", after-before)
		}
	}
	// mustWrite gives how long after since the guest wrote again: asking takes
	// some of that.
	mustWrite := func(since time.Time, limit time.Duration) {
		t.Helper()
		for before := size(); size() == before; {
			if time.Since(since) > limit+10*time.Second {
				t.Fatal("the guest does not write")
			}
		}
		if took := time.Since(since); took > limit {
			t.Errorf("it wrote again after %v, more than %v", took, limit)
		} else {
			t.Logf("it wrote again after %v", took)
		}
	}
	dial := func() *guest.Inside {
		t.Helper()
		var err error
		for range 60 {
			var s *guest.Inside
			if s, err = guest.DialInside(t.Context(), g.AgentSocket, guest.Hello{Host: "test"}); err == nil {
				t.Cleanup(func() { _ = s.Close() })
				return s
			}
			time.Sleep(500 * time.Millisecond)
		}
		t.Fatalf("%v\n%s", err, labtest.Shell(t, g, "cat /run/cairn-agent.log"))
		return nil
	}
	call := func(s *guest.Inside, name string, args, result any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.Call(ctx, name, args, result); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, labtest.Shell(t, g, "cat /run/cairn-agent.log"))
		}
	}
	freeze := func(s *guest.Inside, limit time.Duration) (f guest.FreezeAnswer) {
		t.Helper()
		call(s, guest.CallPrepare, guest.Prepare{Point: "p", FreezeLimitMS: limit.Milliseconds()}, nil)
		call(s, guest.CallFreeze, guest.Freeze{Point: "p"}, &f)
		if f.Filesystems != 2 { // / and /srv
			t.Errorf("frozen: %+v", f)
		}
		return f
	}

	s := dial()
	start := time.Now()
	f := freeze(s, 0)
	t.Logf("prepared and frozen in %v: %+v", time.Since(start), f.Steps)
	mustStand()
	var doc []byte
	call(s, guest.CallFetch, nil, &doc)
	var th guest.Thawn
	start = time.Now()
	call(s, guest.CallThaw, nil, &th)
	mustWrite(start, 5*time.Second)
	if !th.Held || th.Filesystems != 2 {
		t.Errorf("thawn: %+v", th)
	}
	d, err := object.Decode(doc)
	if err != nil || object.Digest(doc) != f.Digest {
		t.Errorf("document: %v", err)
	}
	frozen := map[string]bool{}
	for _, m := range d.Mounts {
		frozen[m.Mountpoint] = m.Frozen
		if !m.Frozen && m.Reason == "" {
			t.Errorf("%+v", m)
		}
	}
	if !frozen["/"] || !frozen["/srv"] || frozen["/run"] {
		t.Errorf("mounts: %+v", d.Mounts)
	}

	freeze(s, 3*time.Second)
	start = time.Now()
	mustStand()
	mustWrite(start, 5*time.Second) // the host is there, and silent
	call(s, guest.CallThaw, nil, &th)
	if th.Held || !strings.Contains(th.Reason, "3s") {
		t.Errorf("thawn: %+v", th)
	}

	freeze(s, 0)
	mustStand()
	start = time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	mustWrite(start, 5*time.Second)

	s = dial()
	freeze(s, 0)
	mustStand()
	start = time.Now()
	labtest.Shell(t, g, "killall -9 cairn-agent")
	mustWrite(start, 10*time.Second)
	_ = s.Close() // its agent is gone
	s = dial()
	if ended := s.Welcome().Ended; !strings.Contains(ended, "was killed") {
		t.Errorf("the next agent says %q", ended)
	}

	var before, after guest.Status
	call(s, guest.CallStatus, nil, &before)
	start = time.Now()
	for range 5 {
		freeze(s, 0)
		call(s, guest.CallThaw, nil, &th)
	}
	took := time.Since(start)
	call(s, guest.CallStatus, nil, &after)
	t.Logf("five runs in %v: %d ms of processor time, %.1f MiB in memory", took, after.CPUMS-before.CPUMS, float64(after.RSS)/(1<<20))
	if after.RSS > 64<<20 {
		t.Errorf("it takes %d bytes of memory", after.RSS)
	}
}
