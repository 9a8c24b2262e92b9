package guest

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDialSkipsWhatIsStale(t *testing.T) {
	for name, stale := range map[string]string{
		"a late answer":            "{\"return\": {\"host-name\": \"wrong\"}}\n",
		"half an answer":           "{\"return\": {\"host-na",
		"the answer to a sync":     "\xff{\"return\": 4711}\n",
		"half a sync answer":       "\xff{\"ret",
		"several delimiters":       "\xff\xff\xff{\"return\": 1}\n\xff",
		"garbage":                  "\x00\x01{[[\"\n\n\n}}",
		"more than a whole answer": strings.Repeat("x", maxAnswer+5) + "\xff" + strings.Repeat("y", maxAnswer+5) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, &fakeAgent{greeting: stale})
			a := dialFake(t, f)
			if got, err := a.Hostname(t.Context()); got != "lab" || err != nil {
				t.Errorf("host name %q, %v", got, err)
			}
		})
	}
}

func TestNoAgent(t *testing.T) {
	t.Run("no socket", func(t *testing.T) {
		_, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none.sock"))
		if !errors.Is(err, ErrNoAgent) || !errors.Is(err, ErrVMGone) {
			t.Error(err)
		}
	})
	for name, f := range map[string]*fakeAgent{
		"silent":        {hooks: map[string]func(io.Writer) bool{"guest-sync-delimited": answer("")}},
		"wrong sync id": {hooks: map[string]func(io.Writer) bool{"guest-sync-delimited": answer("\xff{\"return\": 1}\n")}},
		"refuses":       {hooks: map[string]func(io.Writer) bool{"guest-sync-delimited": answer("\xff{\"error\": {\"class\": \"x\", \"desc\": \"no\"}}\n")}},
		"endless":       {hooks: map[string]func(io.Writer) bool{"guest-sync-delimited": babble("{}")}},
		"endless syncs": {hooks: map[string]func(io.Writer) bool{"guest-sync-delimited": babble("\xff\n")}},
	} {
		t.Run(name, func(t *testing.T) {
			startFake(t, f)
			a := dialer(f.path)
			a.limit = testTimeouts()
			start := time.Now()
			if err := a.open(t.Context()); !errors.Is(err, ErrNoAgent) {
				t.Errorf("error %v, want ErrNoAgent", err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{"guest-sync-delimited": answer("")}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := Dial(ctx, f.path); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoAgent) {
			t.Error(err)
		}
	})
}

// babble writes for ever, until the client has gone.
func babble(text string) func(io.Writer) bool {
	block := []byte(strings.Repeat(text, 10_000))
	return func(w io.Writer) bool {
		for {
			if _, err := w.Write(block); err != nil {
				return true
			}
		}
	}
}

func TestLateAnswerIsNotTakenForAnother(t *testing.T) {
	f := &fakeAgent{hooks: map[string]func(io.Writer) bool{"guest-ping": func(w io.Writer) bool {
		time.Sleep(150 * time.Millisecond)
		return answer("{\"return\": {\"host-name\": \"that is the ping\"}}\n")(w)
	}}}
	startFake(t, f)
	a := dialFake(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.Ping(ctx); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("slow ping: %v, want ErrNoAnswer", err)
	}
	if got, err := a.Hostname(t.Context()); got != "lab" || err != nil {
		t.Errorf("after a time-out: %q, %v", got, err)
	}
	if n := f.count("guest-sync-delimited"); n != 2 {
		t.Errorf("%d syncs, want one at the start and one after the time-out", n)
	}
}

func TestBadAnswers(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":        "hello\n",
		"empty line":      "\n",
		"neither":         "{}\n",
		"both":            "{\"return\": 1, \"error\": {}}\n",
		"wrong type":      "{\"return\": [1]}\n",
		"too long":        "{\"return\": \"" + strings.Repeat("a", maxAnswer) + "\"}\n",
		"too deep":        "{\"return\": " + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + "}\n",
		"too long a name": "{\"return\": {\"host-name\": \"" + strings.Repeat("a", maxText+1) + "\"}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{"guest-get-host-name": answer(text)}})
			a := dialFake(t, f)
			if _, err := a.Hostname(t.Context()); !errors.Is(err, ErrBadAnswer) {
				t.Errorf("error %.200v, want ErrBadAnswer", err)
			}
			if err := a.Ping(t.Context()); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

func TestAgentErrorIsToldFromAMissingCommand(t *testing.T) {
	f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{
		"guest-get-host-name": answer("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no name\"}}\n")}})
	a := dialFake(t, f)
	var answered *AgentError
	if _, err := a.Hostname(t.Context()); !errors.As(err, &answered) || answered.Desc != "no name" || errors.Is(err, ErrUnsupported) {
		t.Errorf("host name: %v", err)
	}
	if _, err := a.OS(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a command that the agent does not have: %v", err)
	}
	if n := f.count("guest-sync-delimited"); n != 1 {
		t.Errorf("%d syncs, want 1: an error is an answer", n)
	}
}

func TestFilesystems(t *testing.T) {
	f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{"guest-get-fsinfo": answer(`{"return": [` +
		`{"mountpoint": "/a", "name": "vda", "type": "ext4", "total-bytes": 100, "used-bytes": 40, "disk": [` +
		`{"dev": "/dev/vda", "serial": "disk-1", "bus-type": "virtio", "bus": 0, "unit": 3, "target": 1, "pci-controller": {"domain": 0, "bus": 1, "slot": 2, "function": 3}}]},` +
		`{"mountpoint": "/b", "name": "dm-0", "type": "xfs", "total-bytes": 1, "used-bytes": 2, "disk": [{"bus-type": "unknown", "bus": 0, "unit": 0, "target": 0, "pci-controller": {"domain": -1, "bus": -1, "slot": -1, "function": -1}}]},` +
		`{"mountpoint": "/c", "name": "tmp", "type": "tmpfs", "disk": []}]}` + "\n")}})
	got, err := dialFake(t, f).Filesystems(t.Context())
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	a, b, c := got[0], got[1], got[2]
	if a.Mountpoint != "/a" || a.Name != "vda" || a.Type != "ext4" || a.UsedBytes != 40 || a.TotalBytes != 100 || len(a.Disks) != 1 {
		t.Errorf("first: %+v", a)
	}
	if d := a.Disks[0]; d.Serial != "disk-1" || d.Dev != "/dev/vda" || d.Bus != "virtio" || d.PCI == nil || d.PCI.String() != "0000:01:02.3" || d.UnitNo != 3 || d.Target != 1 {
		t.Errorf("first disk: %+v", d)
	}
	if b.UsedBytes != 0 || b.TotalBytes != 0 {
		t.Errorf("more used than there is was believed: %+v", b)
	}
	if len(b.Disks) != 1 || b.Disks[0].PCI != nil {
		t.Errorf("a controller at -1 was believed: %+v", b.Disks)
	}
	if len(c.Disks) != 0 || c.TotalBytes != 0 {
		t.Errorf("third: %+v", c)
	}
}

func TestInfo(t *testing.T) {
	f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{"guest-info": answer(
		`{"return": {"version": "7.2.22", "supported_commands": [{"enabled": true, "name": "guest-ping", "success-response": true}, {"enabled": false, "name": "guest-exec", "success-response": true}]}}` + "\n")}})
	info, err := dialFake(t, f).Info(t.Context())
	if err != nil || info.Version != "7.2.22" || !info.Enabled("guest-ping") || info.Enabled("guest-exec") || info.Enabled("guest-nothing") {
		t.Errorf("%+v, %v", info, err)
	}
}
