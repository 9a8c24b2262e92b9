package job

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// QEMU's user may pass through the state folder to the scratch folder, and
// read nothing on the way. Folders of others are left alone.
func TestMakePassable(t *testing.T) {
	top := t.TempDir()
	state, named := filepath.Join(top, "state"), filepath.Join(top, "big")
	for _, dir := range []string{filepath.Join(state, "scratch", "web01"), filepath.Join(named, "web01")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := makePassable(state, dir); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]os.FileMode{
		state: 0o711, filepath.Join(state, "scratch"): 0o711, filepath.Join(state, "scratch", "web01"): 0o711,
		named: 0o700, filepath.Join(named, "web01"): 0o711,
	} {
		st, err := os.Stat(dir)
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", dir, st.Mode().Perm(), err, want)
		}
	}
}

// A guardian whose run has ended well has nothing to do, with libvirt or
// without; one whose run died tries to reach libvirt until its time is over.
func TestGuardianOfADomain(t *testing.T) {
	charge := Charge{VM: VM{Name: "web01", Libvirt: "qemu:///system?socket=/nonexistent/libvirt-sock", Domain: "web01"},
		Agent: throughLibvirt, State: t.TempDir(), Scratch: "/nonexistent"}
	var log bytes.Buffer
	said := []byte{sayFleece, sayFreezing, sayStopping, sayRunning, sayThawed, sayReleased}
	if err := RunGuardian(t.Context(), bytes.NewReader(said), charge, &log); err != nil || log.Len() > 0 {
		t.Errorf("a good run: %v %s", err, log.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	if err := RunGuardian(ctx, bytes.NewReader(said[:3]), charge, &log); err == nil || !strings.Contains(log.String(), "libvirtd") {
		t.Errorf("a run that died: %v %s", err, log.String())
	}
}
