package libvirt

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// version is a QEMU's, as libvirt writes it: 7002022 is 7.2.22.
type version uint64

// safeVersion is the first QEMU whose main loop alone has the list of NBD
// clients; see the package's comment.
const safeVersion version = 9_000_000

func (v version) String() string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000)
}

// versionTimeout bounds the start of a QEMU that only tells its version.
const versionTimeout = 10 * time.Second

// version gives the version of the QEMU that the domain is started with. The
// program is asked: libvirt knows only that of its default one, and probes it
// anew for seconds on hosts whose cached answer it does not trust.
func (d *Domain) version(ctx context.Context, x *domainXML) (version, error) {
	if d.qemu != 0 {
		return d.qemu, nil
	}
	pctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	if filepath.IsAbs(x.Devices.Emulator) {
		out, err := exec.CommandContext(pctx, x.Devices.Emulator, "--version").Output()
		if v, ok := parseVersion(out); ok && err == nil {
			d.qemu = v
			return v, nil
		}
	}
	var v uint64
	err := d.conn.ask(ctx, "ask for QEMU's version", func(l *golibvirt.Libvirt) (err error) {
		v, err = l.ConnectGetVersion()
		return err
	})
	if err == nil {
		d.qemu = version(v)
	}
	return version(v), err
}

// parseVersion reads "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)".
func parseVersion(out []byte) (version, bool) {
	m := regexp.MustCompile(`version ([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,3}))?`).FindSubmatch(out)
	if m == nil {
		return 0, false
	}
	var v version
	for _, part := range m[1:] {
		n, err := strconv.ParseUint(string(part), 10, 64)
		if err != nil {
			n = 0 // "10.0" has no third
		}
		v = v*1000 + version(n)
	}
	return v, true
}
