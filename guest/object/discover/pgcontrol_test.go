//go:build linux

package discover

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// controlFile makes a control file by hand, as the given version lays it out.
func controlFile(order binary.ByteOrder, version uint32) []byte {
	b := make([]byte, 8192)
	checkpoint, at := 40, 64
	if version < 1100 {
		checkpoint = 48
	}
	if version < 1201 {
		at = 56
	}
	order.PutUint64(b[0:], 7642011472967116994)
	order.PutUint32(b[8:], version)
	order.PutUint32(b[12:], 202209061)
	order.PutUint32(b[16:], 6)
	order.PutUint64(b[24:], 1_700_000_000)
	order.PutUint64(b[32:], 0x1_2345_6789)
	order.PutUint64(b[checkpoint:], 0x1_2345_0000)
	order.PutUint32(b[checkpoint+8:], 3)
	b[checkpoint+16] = 1
	order.PutUint64(b[checkpoint+at:], 1_699_999_999)
	order.PutUint32(b[288:], crc32.Checksum(b[:288], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestControlLayouts(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, version := range []uint32{942, 960, 1002, 1100, 1201, 1300, 1700, 1800, 1902} {
			c, err := ParseControl(controlFile(order, version))
			if err != nil {
				t.Errorf("version %d, %v: %v", version, order, err)
				continue
			}
			want := Control{
				System: 7642011472967116994, Version: version, Catalogue: 202209061, State: "in production",
				Updated: time.Unix(1_700_000_000, 0).UTC(), Checkpoint: 0x1_2345_6789, Redo: 0x1_2345_0000, Timeline: 3, FullPages: true,
				Time: time.Unix(1_699_999_999, 0).UTC(),
			}
			if version == 1902 {
				want.Time = time.Time{} // its place is not known
			}
			if c != want {
				t.Errorf("version %d, %v: %+v, want %+v", version, order, c, want)
			}
			if c.Redo.String() != "1/23450000" {
				t.Errorf("LSN %s", c.Redo)
			}
		}
	}
}

func TestControlRefused(t *testing.T) {
	good := controlFile(binary.LittleEndian, 1300)
	for name, change := range map[string]func(b []byte) []byte{
		"short":       func(b []byte) []byte { return b[:ControlSize-1] },
		"empty":       func([]byte) []byte { return nil },
		"flipped":     func(b []byte) []byte { b[34] ^= 1; return b },
		"torn":        func(b []byte) []byte { clear(b[256:]); return b },
		"old":         func([]byte) []byte { return controlFile(binary.LittleEndian, 937) },
		"not a one":   func(b []byte) []byte { return []byte(strings.Repeat("text ", 200)) },
		"of 32 bits":  func(b []byte) []byte { binary.LittleEndian.PutUint32(b[20:], 1_700_000_000); return b },
		"bad state":   func(b []byte) []byte { b[16] = 77; return resum(b) },
		"zeros":       func([]byte) []byte { return make([]byte, 8192) },
		"other order": func([]byte) []byte { return controlFile(binary.BigEndian, 17) },
	} {
		b := change(append([]byte(nil), good...))
		if c, err := ParseControl(b); !errors.Is(err, ErrControl) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func resum(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[288:], crc32.Checksum(b[:288], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// TestControlOfRealCluster compares with pg_controldata's words for a cluster
// that initdb has made.
func TestControlOfRealCluster(t *testing.T) {
	bin := postgresBin(t)
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	run := asPostgres(t, dir)
	run(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "--no-sync")
	said := map[string]string{}
	for line := range strings.Lines(run(filepath.Join(bin, "pg_controldata"), "-D", data)) {
		k, v, _ := strings.Cut(line, ":")
		said[k] = strings.TrimSpace(v)
	}
	c, err := ClusterAt(context.Background(), root(t, "/"), data)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{
		"Database system identifier":           strconv.FormatUint(c.Control.System, 10),
		"pg_control version number":            strconv.Itoa(int(c.Control.Version)),
		"Catalog version number":               strconv.Itoa(int(c.Control.Catalogue)),
		"Database cluster state":               c.Control.State,
		"Latest checkpoint location":           c.Control.Checkpoint.String(),
		"Latest checkpoint's REDO location":    c.Control.Redo.String(),
		"Latest checkpoint's TimeLineID":       strconv.Itoa(int(c.Control.Timeline)),
		"Latest checkpoint's full_page_writes": map[bool]string{true: "on", false: "off"}[c.Control.FullPages],
		"pg_control last modified":             c.Control.Updated.Format("Mon Jan _2 15:04:05 2006"),
		"Time of latest checkpoint":            c.Control.Time.Format("Mon Jan _2 15:04:05 2006"),
	}
	for k, v := range got {
		if said[k] != v {
			t.Errorf("%s: %q, pg_controldata says %q", k, v, said[k])
		}
	}
	if c.Data != data || c.Version != strings.TrimSpace(readFile(t, data+"/PG_VERSION")) {
		t.Errorf("the cluster: %+v", c)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// postgresBin gives the directory of a PostgreSQL server's programs.
func postgresBin(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // a good pattern
	if len(found) == 0 {
		t.Skip("no PostgreSQL server is installed: `make deps` does it")
	}
	return filepath.Dir(found[len(found)-1])
}

// asPostgres gives a function that runs programs as the user postgres, who gets
// a directory of the test: PostgreSQL refuses to run as root.
func asPostgres(t *testing.T, dir string) func(args ...string) string {
	t.Helper()
	credential := (*syscall.Credential)(nil)
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip(err)
		}
		uid, _ := strconv.Atoi(u.Uid) // they are numbers
		gid, _ := strconv.Atoi(u.Gid)
		credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		for up := dir; up != "/"; up = filepath.Dir(up) { // t.TempDir's own are 0700
			if err := os.Chmod(up, 0o755); up != "/tmp" && err != nil {
				t.Fatal(err)
			}
			if filepath.Dir(up) == os.TempDir() {
				break
			}
		}
	}
	return func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
		return string(out)
	}
}
