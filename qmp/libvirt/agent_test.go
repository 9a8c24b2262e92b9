package libvirt

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A daemon that takes connections and never answers: every call ends with its
// context, and leaves no goroutine that Close would wait for.
func TestCallsEndWithTheirContext(t *testing.T) {
	socket := t.TempDir() + "/libvirt-sock"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err = Open(ctx, "qemu+unix:///system?socket="+socket, "web01")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent daemon: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	l.Close()
	os.Remove(socket)
	if _, err := Dial(t.Context(), "qemu+unix:///system?socket="+socket); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "libvirtd") {
		t.Errorf("no daemon: %v", err)
	}
}

// Only a command that the agent has is passed on: what it has not is told in
// the agent's own class, which libvirt's errors do not keep.
func TestUnknownAgentCommand(t *testing.T) {
	tr := agentTranslator{has: map[string]bool{"guest-ping": true}}
	for line, want := range map[string]string{
		`{"execute":"guest-get-osinfo"}`: `{"error":{"class":"CommandNotFound","desc":"the guest agent does not have or allow guest-get-osinfo"}}`,
		`nonsense`:                       `"class":"GenericError"`,
		`{"execute":"guest-sync-delimited","arguments":{"id":"x"}}`: `"class":"InvalidParameter"`,
	} {
		got, err := tr.answer(t.Context(), []byte(line))
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s: %s, %v", line, got, err)
		}
	}
	if waitFor("guest-fsfreeze-freeze") <= waitFor("guest-info") {
		t.Error("a freeze, which flushes first, has no more time than others")
	}
}

func TestReachable(t *testing.T) {
	dir := t.TempDir()
	inner := dir + "/state/scratch"
	if err := os.MkdirAll(inner, 0o711); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != os.TempDir() && d != "/"; d = d[:strings.LastIndex(d, "/")] {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	const qemu = 64055
	if err := reachable(inner, qemu, qemu); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(dir+"/state", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := reachable(inner, qemu, qemu); err == nil || !strings.Contains(err.Error(), dir+"/state:") {
		t.Errorf("a folder that is closed to QEMU: %v", err)
	}
	if err := reachable(inner, 0, 0); err != nil {
		t.Errorf("root: %v", err)
	}
}
