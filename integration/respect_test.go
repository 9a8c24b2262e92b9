package integration

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestForeignersAreRespected: what other programs have in QEMU keeps a backup
// from being made, in words, or does not; it is never touched.
func TestForeignersAreRespected(t *testing.T) {
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := startBare(t, h, q, twoDisks()...)
		v.scatter(0)
		v.backup(h)

		// Bitmaps, nodes and exports of others, from here on to the end.
		theirs := []string{"libvirt-1", "bitmap0", "cairn-is-not-this", "cairn-zzzzzzzz-1"}
		for _, name := range theirs {
			v.do("block-dirty-bitmap-add", map[string]any{"node": "vda", "name": name, "persistent": true})
		}
		v.do("blockdev-add", map[string]any{"driver": "null-co", "node-name": "cairn-cbw-x", "size": bareSize})
		// An export that needs no NBD server, so that it can be there all the time.
		v.do("block-export-add", map[string]any{"type": "vhost-user-blk", "id": "cairn-exp-x", "node-name": "cairn-cbw-x",
			"addr": map[string]any{"type": "unix", "path": v.dir + "/vhost"}})
		v.scatter(1)
		v.backup2(h)

		t.Run("NBD server", func(t *testing.T) {
			v.do("nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": v.dir + "/theirs"}}})
			v.do("block-export-add", map[string]any{"type": "nbd", "id": "theirs", "node-name": "cairn-cbw-x", "name": "theirs"})
			h.run(t, exitFailed, "backup", vmName).mentions(t, "another program's backup or mirror")
			h.run(t, exitOK, "doctor", vmName).mentions(t, `another program exports "theirs"`)
			nc, err := net.Dial("unix", v.dir+"/theirs")
			if err != nil {
				t.Fatalf("the other's NBD server: %v", err)
			}
			hello := make([]byte, 8)
			if _, err := nc.Read(hello); err != nil || string(hello) != "NBDMAGIC" {
				t.Errorf("it says %q, %v", hello, err)
			}
			nc.Close()
			v.do("block-export-del", map[string]any{"id": "theirs", "mode": "hard"})
			time.Sleep(200 * time.Millisecond) // QEMU 7.2 hangs if the server is stopped in a handshake
			v.do("nbd-server-stop", map[string]any{})
			v.scatter(2)
			v.backup2(h)
		})

		t.Run("job", func(t *testing.T) {
			v.do("blockdev-add", map[string]any{"driver": "null-co", "node-name": "mirrored", "size": bareSize})
			v.do("blockdev-mirror", map[string]any{"job-id": "theirs", "device": "vda", "target": "mirrored", "sync": "full"})
			h.run(t, exitFailed, "backup", vmName).mentions(t, "another program works on the disk")
			h.run(t, exitWarnings, "doctor", vmName).mentions(t, "no backup now")
			if jobs := v.jobs(); !slices.Contains(jobs, "theirs") {
				t.Fatalf("jobs: %q", jobs)
			}
			v.do("block-job-cancel", map[string]any{"device": "theirs", "force": true})
			for start := time.Now(); len(v.jobs()) > 0 && time.Since(start) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
			}
			v.scatter(3)
			v.backup2(h)
		})

		t.Run("monitor's client", func(t *testing.T) {
			nc, err := net.Dial("unix", v.QMPSocket)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			begin := time.Now()
			h.run(t, exitFailed, "backup", vmName).mentions(t, "another client is connected")
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("it took %s to say so", took)
			}
			hello := make([]byte, 7)
			if _, err := nc.Read(hello); err != nil || string(hello) != `{"QMP":` {
				t.Errorf("the monitor says %q to its first client, %v", hello, err)
			}
		})

		t.Run("second backup", func(t *testing.T) {
			v.scatter(4)
			r := h.start(t, "backup", vmName, "--quiet", "--full-read", "--read-limit", "1MiB")
			if !h.awaitStep(t, r, "read") {
				t.Fatalf("the first ended before it read: %+v", r.wait())
			}
			other := *h // its index is its own, so that it waits for nobody's
			other.cache = h.cache + "-other"
			begin := time.Now()
			other.run(t, exitFailed, "backup", vmName).mentions(t, "another backup of this VM is running")
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %s to say so", took)
			}
			if got := r.wait(); got.code != exitOK {
				t.Errorf("the first: %+v", got)
			}
		})

		t.Run("export on our NBD server", func(t *testing.T) {
			v.scatter(4)
			r := h.start(t, "backup", vmName, "--quiet", "--full-read", "--read-limit", "1MiB")
			if !h.awaitStep(t, r, "read") {
				t.Fatalf("the run ended before it read: %+v", r.wait())
			}
			v.do("block-export-add", map[string]any{"type": "nbd", "id": "theirs", "node-name": "cairn-cbw-x", "name": "theirs"})
			if got := r.wait(); got.code != exitOK {
				t.Errorf("the backup: %+v", got)
			}
			if has := v.exports(); !slices.Equal(has, []string{"cairn-exp-x", "theirs"}) {
				t.Errorf("exports: %q", has)
			}
			v.scatter(5)
			v.backup2(h)
			v.do("block-export-del", map[string]any{"id": "theirs", "mode": "hard"})
		})

		for name, guarded := range map[string]bool{"cleaning by the guardian": true, "cleaning by the next run": false} {
			t.Run(name, func(t *testing.T) {
				v.scatter(5)
				r := h.start(t, "backup", vmName, "--quiet", "--full-read", "--read-limit", "1MiB")
				if !h.awaitStep(t, r, "read") {
					t.Fatalf("the run ended before it read: %+v", r.wait())
				}
				// An NBD export on the server that cairn has started.
				v.do("block-export-add", map[string]any{"type": "nbd", "id": "cairn-exp-1x", "node-name": "cairn-cbw-x", "name": "theirs"})
				if hit, guardian := killRun(t, r, !guarded); !hit || guardian == guarded {
					t.Fatalf("killed the run: %v, its guardian: %v", hit, guardian)
				}
				if guarded {
					awaitCleaned(t, v)
				}
				v.scatter(6)
				v.backup2(h)
				if has := v.exports(); !slices.Equal(has, []string{"cairn-exp-1x", "cairn-exp-x"}) {
					t.Errorf("exports: %q", has)
				}
				v.do("block-export-del", map[string]any{"id": "cairn-exp-1x", "mode": "hard"})
			})
		}

		v.scatter(7)
		v.backup2(h)
		h.run(t, exitOK, "vm", "bitmaps", vmName, "--remove", "--all")
		has := bitmaps(t, v.Guest)["vda"]
		for _, name := range theirs {
			if !slices.Contains(has, name) {
				t.Errorf("bitmap %s of another program is gone: %q", name, has)
			}
		}
		for _, name := range has {
			if !slices.Contains(theirs, name) {
				t.Errorf("bitmap %s is left", name)
			}
		}
		if out := v.nodes(); !strings.Contains(out, " cairn-cbw-x ") {
			t.Errorf("a node of another program is gone: %s", out)
		}
		if has := v.exports(); !slices.Equal(has, []string{"cairn-exp-x"}) {
			t.Errorf("exports: %q", has)
		}
	})
}

// backup2 makes an incremental point and compares it with the disks. What
// others have in QEMU is no leftover of ours.
func (v *bare) backup2(h *host) {
	v.t.Helper()
	s := h.backup(v.t)
	v.isRestored(h, s)
	if s.Read != "incremental" {
		v.t.Errorf("%+v", s)
	}
}

func (v *bare) jobs() (ids []string) {
	v.t.Helper()
	var list []struct {
		ID string `json:"id"`
	}
	if err := v.Command(v.t.Context(), "query-jobs", nil, &list); err != nil {
		v.t.Fatal(err)
	}
	for _, j := range list {
		ids = append(ids, j.ID)
	}
	return ids
}

// exports gives the IDs of all exports, sorted.
func (v *bare) exports() (ids []string) {
	v.t.Helper()
	var list []struct {
		ID string `json:"id"`
	}
	if err := v.Command(v.t.Context(), "query-block-exports", nil, &list); err != nil {
		v.t.Fatal(err)
	}
	for _, e := range list {
		ids = append(ids, e.ID)
	}
	slices.Sort(ids)
	return ids
}

// awaitCleaned waits until a dead run's guardian has taken its nodes out.
func awaitCleaned(t *testing.T, v *bare) {
	t.Helper()
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
		if out := v.nodes(); !strings.Contains(out, " cairn-cbw-0 ") && !strings.Contains(out, " cairn-scr-0 ") {
			return
		}
	}
	t.Fatalf("the guardian left nodes of the dead run: %s", v.nodes())
}

// nodes gives the names of all nodes, each between spaces.
func (v *bare) nodes() string {
	v.t.Helper()
	var list []struct {
		Name string `json:"node-name"`
	}
	if err := v.Command(v.t.Context(), "query-named-block-nodes", map[string]any{"flat": true}, &list); err != nil {
		v.t.Fatal(err)
	}
	out := " "
	for _, n := range list {
		out += n.Name + " "
	}
	return out
}
