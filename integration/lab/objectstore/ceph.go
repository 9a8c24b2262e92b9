package objectstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// cephEngine is the name of Ceph, which some tests expect other things of.
const cephEngine = "ceph"

// Ceph is the smallest whole cluster that has an RGW: a monitor, an OSD on a
// file, and radosgw, of the packages that `make campaign-rgw` installs. Release
// 16.2 creates only what does not exist in buckets without versions, and
// ignores the condition in those with versions (POLICIES.md). There may be
// several at once: each has an address of its own in 127.0.0.0/8.
func Ceph() Engine {
	return Engine{name: cephEngine, find: findCeph, start: startCeph,
		user: func(s *Server, access, secret string) *exec.Cmd {
			return exec.Command("radosgw-admin", "--conf", cephConf(s.Dir), "user", "create", "--uid", access, "--display-name", access, "--access-key", access, "--secret-key", secret) //nolint:noctx // seconds
		}}
}

// findCeph gives radosgw, and an error that is no reason to skip: who asks for
// Ceph (CAIRN_RGW=1) must not take a test for passed that did not run.
func findCeph(context.Context, io.Writer) (string, error) {
	for _, program := range []string{"ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw-admin"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("ceph is not installed: make campaign-rgw does that, or .ci/deps rgw: %w", err)
		}
	}
	return exec.LookPath("radosgw")
}

func cephConf(dir string) string { return filepath.Join(dir, "ceph.conf") }

// cephSettings is for one OSD, one copy, and a folder whose name may be too long
// for a socket. The authentication is Ceph's default: radosgw does not start
// without it (permission denied, -13).
const cephSettings = `[global]
fsid = %[2]s
mon host = %[3]s
mon initial members = a
public addr = %[4]s
cluster addr = %[4]s
keyring = %[1]s/keyring
run dir = %[1]s
admin socket =
pid file =
log file = %[1]s/$name.log
mon cluster log file = %[1]s/cluster.log
mon data = %[1]s/mon
mon data avail warn = 2
mon data avail crit = 1
mon allow pool size one = true
osd data = %[1]s/osd
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd memory target = 939524096
bluestore block size = 8589934592
rgw data = %[1]s/rgw
rgw frontends = beast endpoint=%[5]s
rgw thread pool size = 64
`

// cephStep bounds each of the steps before radosgw runs.
const cephStep = 2 * time.Minute

// startCeph starts a monitor and an OSD, and gives radosgw's command.
func startCeph(ctx context.Context, radosgw string, s *Server, dir string) (*exec.Cmd, error) {
	var r [3]byte
	_, _ = rand.Read(r[:]) // never fails
	host := fmt.Sprintf("127.%d.%d.%d", 1+r[0]%254, r[1], 1+r[2]%254)
	// Only the default ports: a monitor that has others is not found by them all.
	mon := fmt.Sprintf("[v2:%s:3300/0,v1:%s:6789/0]", host, host)
	fsid, osd := newUUID(), newUUID()
	if err := os.WriteFile(cephConf(dir), fmt.Appendf(nil, cephSettings, dir, fsid, mon, host, s.Address), 0o600); err != nil {
		return nil, err
	}
	for _, d := range []string{"mon", "osd", "rgw"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	conf, keyring, monmap := []string{"--conf", cephConf(dir)}, filepath.Join(dir, "keyring"), filepath.Join(dir, "monmap")
	run := func(program string, args ...string) error { return runStep(ctx, s, program, append(conf, args...)...) }
	for i, caps := range [][]string{
		{"mon.", "--cap", "mon", "allow *"},
		{"client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"},
		{"osd.0", "--cap", "mon", "allow profile osd", "--cap", "osd", "allow *", "--cap", "mgr", "allow profile osd"},
	} {
		args := append([]string{keyring, "--gen-key", "-n"}, caps...)
		if i == 0 {
			args = append(args, "--create-keyring")
		}
		if err := run("ceph-authtool", args...); err != nil {
			return nil, err
		}
	}
	if err := run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", mon, monmap); err != nil {
		return nil, err
	}
	if err := run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring); err != nil {
		return nil, err
	}
	daemon := func(program string, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, program, append(conf, append(args, "-f")...)...)
	}
	if err := s.launch(daemon("ceph-mon", "-i", "a")); err != nil {
		return nil, err
	}
	if err := run("ceph", "--connect-timeout", "60", "osd", "create", osd); err != nil {
		return nil, err
	}
	if err := run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd); err != nil {
		return nil, err
	}
	if err := s.launch(daemon("ceph-osd", "-i", "0")); err != nil {
		return nil, err
	}
	if err := run("radosgw-admin", "user", "create", "--uid", "root", "--display-name", "root", "--access-key", s.AccessKey, "--secret-key", s.SecretKey); err != nil {
		return nil, err
	}
	return daemon(radosgw, "-n", "client.admin"), nil
}

// runStep runs a program to its end.
func runStep(ctx context.Context, s *Server, program string, args ...string) error {
	ctx, stop := context.WithTimeout(ctx, cephStep)
	defer stop()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s; the daemons say: %s", program, strings.Join(args, " "), err, lastLines(bytes.TrimSpace(out)), lastLines([]byte(s.Log())))
	}
	return nil
}

// newUUID gives a random one, of version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
