package lab_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"cairn/guest"
	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestStockAgent holds package guest against the real qemu-guest-agent.
func TestStockAgent(t *testing.T) {
	g := labtest.Start(t, nil)
	t.Run("questions", func(t *testing.T) { questions(t, g) })
	t.Run("freeze", func(t *testing.T) { freezeWhileWriting(t, g) })
	t.Run("hung", func(t *testing.T) { hungAgent(t, g) })
	t.Run("killed while frozen", func(t *testing.T) { killedWhileFrozen(t, g) })
	t.Run("no agent", func(t *testing.T) { noAgent(t, g) })
}

func dialAgent(t *testing.T, g *lab.Guest) *guest.Agent {
	t.Helper()
	// The agent starts at the same time as the console says BOOTED.
	for attempt := 0; ; attempt++ {
		a, err := guest.Dial(t.Context(), g.QGASocket)
		if err == nil {
			t.Cleanup(func() { a.Close() })
			return a
		}
		if attempt == 5 {
			t.Fatal(err)
		}
	}
}

func questions(t *testing.T, g *lab.Guest) {
	a := dialAgent(t, g)
	if err := a.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	info, err := a.Info(t.Context())
	if err != nil || info.Version == "" || !info.Enabled("guest-fsfreeze-freeze") {
		t.Errorf("info %+v, %v", info, err)
	}
	os, err := a.OS(t.Context())
	if err != nil || os.ID != "cairn-lab" || os.Machine != "x86_64" || os.KernelRelease == "" {
		t.Errorf("os %+v, %v", os, err)
	}
	if name, err := a.Hostname(t.Context()); err != nil || name != "lab" {
		t.Errorf("host name %q, %v", name, err)
	}
	filesystems, err := a.Filesystems(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]guest.Filesystem)
	for _, f := range filesystems {
		found[f.Mountpoint] = f
	}
	for mountpoint, serial := range map[string]string{"/": "vda", "/srv": "vdb"} {
		f := found[mountpoint]
		if f.Type != "ext4" || f.UsedBytes == 0 || f.UsedBytes >= f.TotalBytes || len(f.Disks) != 1 ||
			f.Disks[0].Serial != serial || f.Disks[0].PCI == nil || !strings.HasPrefix(f.Disks[0].Dev, "/dev/"+serial) {
			t.Errorf("%s: %+v", mountpoint, f)
		}
	}
}

// freezeWhileWriting looks from inside whether a writer stands still between
// freeze and thaw and goes on afterwards.
func freezeWhileWriting(t *testing.T, g *lab.Guest) {
	a := dialAgent(t, g)
	labtest.Shell(t, g, "(i=0; while [ ! -e /run/stop ]; do i=$((i+1)); echo $i >>/srv/log; cat </dev/null >/srv/beat; echo $i >/run/beat; done) >/dev/null 2>&1 & while [ ! -e /run/beat ]; do usleep 10000; done")
	defer labtest.Shell(t, g, "touch /run/stop")
	guard := a.Guard()
	defer func() {
		if _, err := guard.Release(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	frozen, err := guard.Freeze(t.Context())
	if err != nil || frozen.Count != 2 {
		t.Fatalf("freeze: %+v, %v", frozen, err)
	}
	t.Logf("frozen in %v", frozen.Took)
	first := labtest.Shell(t, g, "cat /run/beat")
	if second := labtest.Shell(t, g, "sleep 0.3; cat /run/beat"); second != first {
		t.Errorf("the writer went on while frozen, from %q to %q", first, second)
	}
	if state, err := a.Status(t.Context()); err != nil || state != guest.Frozen {
		t.Errorf("status while frozen: %q, %v", state, err)
	}
	if _, err := a.Hostname(t.Context()); !errors.Is(err, guest.ErrUnsupported) {
		t.Errorf("a frozen agent answered another question: %v", err)
	}
	if _, err := a.Guard().Freeze(t.Context()); !errors.Is(err, guest.ErrAlreadyFrozen) {
		t.Errorf("second freeze: %v", err)
	}
	thawed, err := guard.Release(t.Context())
	if err != nil || thawed.Count != 2 || thawed.Attempts != 1 {
		t.Fatalf("release: %+v, %v", thawed, err)
	}
	t.Logf("thawed in %v, frozen for %v", thawed.Took, thawed.FrozenFor)
	if third := labtest.Shell(t, g, "sleep 0.3; cat /run/beat"); third == first {
		t.Error("the writer does not go on after the thaw")
	}
}

// hungAgent stops the agent's process: the freeze is executed when it wakes.
func hungAgent(t *testing.T, g *lab.Guest) {
	a := dialAgent(t, g)
	if err := a.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	guard := a.Guard()
	stop := make(chan error, 1)
	// The guard asks for the status first, so to a stopped agent it sends no
	// freeze at all. The freeze that waits in the channel comes from a client
	// that died.
	labtest.Shell(t, g, "kill -STOP $(pidof qemu-ga)")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := guard.Freeze(ctx); !errors.Is(err, guest.ErrNoAnswer) {
		t.Errorf("freeze of a stopped agent: %v", err)
	}
	if released, err := guard.Release(t.Context()); err != nil || released.Sent {
		t.Errorf("release of a freeze that was not sent: %+v, %v", released, err)
	}
	sendRaw(t, a, g)
	go func() {
		_, err := g.Shell(t.Context(), "sleep 1; kill -CONT $(pidof qemu-ga)")
		stop <- err
	}()
	waitCtx, done := context.WithTimeout(t.Context(), 20*time.Second)
	defer done()
	thawed, err := guest.Thaw(waitCtx, g.QGASocket)
	if err != nil || thawed.Count != 2 {
		t.Errorf("thaw on waking up: %+v, %v; want the two filesystems of the late freeze", thawed, err)
	}
	if err := <-stop; err != nil {
		t.Error(err)
	}
	labtest.Shell(t, g, "touch /srv/alive && rm /srv/alive")
}

// killedWhileFrozen kills the agent with SIGKILL: init starts it again, it
// finds its state file, and thaws on command.
func killedWhileFrozen(t *testing.T, g *lab.Guest) {
	a := dialAgent(t, g)
	guard := a.Guard()
	if _, err := guard.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	labtest.Shell(t, g, "kill -KILL $(pidof qemu-ga)")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	thawed, err := guard.Release(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("thawed %d in %d attempts", thawed.Count, thawed.Attempts)
	labtest.Shell(t, g, "touch /srv/alive && rm /srv/alive")
}

func noAgent(t *testing.T, g *lab.Guest) {
	labtest.Shell(t, g, "touch /run/no-qemu-ga; kill $(pidof qemu-ga); sleep 0.3")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := guest.Dial(ctx, g.QGASocket); !errors.Is(err, guest.ErrNoAgent) {
		t.Errorf("no agent in the guest: %v", err)
	}
}

// sendRaw leaves a freeze in the channel, as a client that died did.
func sendRaw(t *testing.T, a *guest.Agent, g *lab.Guest) {
	t.Helper()
	if err := a.Close(); err != nil { // QEMU serves one client at a time
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", g.QGASocket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\xff{\"execute\":\"guest-fsfreeze-freeze\"}\n")); err != nil {
		t.Fatal(err)
	}
	// QEMU drops what it has not read when a client closes.
	time.Sleep(200 * time.Millisecond)
}
