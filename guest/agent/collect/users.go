//go:build linux

package collect

import (
	"context"
	"encoding/binary"
	"os"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// users finds the profiles of people.
type users struct{ guest }

func (users) Name() string { return "users" }

// Inventory is agent.Collector's.
func (g users) Inventory(ctx context.Context) ([]agent.Found, error) {
	root := g.open()
	defer root.Close()
	all, missed := discover.Users(ctx, root)
	logins := openLastlog("/var/log/lastlog")
	if logins != nil {
		defer logins.Close()
	}
	taken := map[string]bool{}
	var found []agent.Found
	for _, u := range all {
		f := agent.Found{Object: u.Object(taken)}
		promise(&f.Object, object.Filesystem, "a user's files: there is nothing to bring to rest")
		if at := lastLogin(logins, u.UID); !at.IsZero() {
			f.Object.Details["last_login"] = at.Format(time.RFC3339)
		}
		found = append(found, f)
	}
	return found, missed
}

// lastlogRecord is the size of a record of /var/log/lastlog: the time in four
// bytes, a terminal in 32, a host in 256 (glibc's bits/utmp.h). A user's record
// is at the place of their number, in a file with holes.
const lastlogRecord = 4 + 32 + 256

func openLastlog(name string) *os.File {
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	return f
}

func lastLogin(f *os.File, uid uint32) time.Time {
	var b [4]byte
	if f == nil {
		return time.Time{}
	}
	if _, err := f.ReadAt(b[:], int64(uid)*lastlogRecord); err != nil {
		return time.Time{}
	}
	n := binary.NativeEndian.Uint32(b[:])
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(int64(n), 0).UTC()
}
