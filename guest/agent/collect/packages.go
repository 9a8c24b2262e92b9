//go:build linux

package collect

import (
	"context"
	"fmt"
	"strings"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// packages finds what is installed.
type packages struct{ guest }

func (packages) Name() string { return "packages" }

// maxRPM is how many packages of rpm are listed.
const maxRPM = 20_000

// Inventory is agent.Collector's. Only rpm has to be asked.
func (g packages) Inventory(ctx context.Context) ([]agent.Found, error) {
	root := g.open()
	defer root.Close()
	p, missed := discover.Installed(ctx, root)
	if p == nil {
		return nil, missed
	}
	if p.Manager == "rpm" {
		out, err := program{args: []string{find("rpm"), "-qa", "--queryformat", `%{NAME}\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\t%{ARCH}\n`}, timeout: patience}.run(ctx)
		if err != nil {
			missed = both(missed, fmt.Errorf("packages of rpm: %w", err))
		}
		p.List = rpmList(out)
	}
	f := agent.Found{Object: p.Object()}
	promise(&f.Object, object.Filesystem, "a list of what is installed")
	return []agent.Found{f}, missed
}

// rpmList reads what rpm was told to print.
func rpmList(out string) []discover.Package {
	var all []discover.Package
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) == 3 && len(all) < maxRPM && f[0] != "gpg-pubkey" {
			all = append(all, discover.Package{Name: f[0], Version: strings.TrimPrefix(f[1], "0:"), Arch: f[2]})
		}
	}
	return all
}
