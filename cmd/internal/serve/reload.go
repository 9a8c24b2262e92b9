package serve

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"cairn/cmd/internal/config"
)

// reload reads the configuration anew if its files have changed, or if it is
// asked to.
func (d *Daemon) reload(asked bool) bool {
	files := fingerprint(d.Dirs)
	d.mu.Lock()
	defer d.mu.Unlock()
	if files == d.files && !asked {
		return false
	}
	d.systemd.tell(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic()))
	defer d.systemd.tell("READY=1")
	d.files = files
	c, err := config.Load(d.Dirs)
	if err != nil {
		d.problem = "the configuration has errors, and the one before it goes on to hold: " + err.Error()
		d.Log.Error("the configuration has errors, and the one before it goes on to hold", "error", err.Error())
		return true
	}
	d.problem, d.config = "", c
	d.retire()
	if d.Reloaded != nil {
		d.Reloaded(c)
	}
	d.findAt = time.Time{}
	d.away, d.attempts = map[string]Away{}, map[string]int{}
	d.Log.Info("the configuration was read", "jobs", len(c.Jobs), "repositories", len(c.Repositories))
	return true
}

func monotonic() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // never fails
	return t.Nano() / 1000
}

// fingerprint says what the configuration's files are like.
func fingerprint(dirs config.Dirs) (text string) {
	names, err := dirs.Files()
	if err != nil {
		return err.Error()
	}
	for _, name := range names {
		st, err := os.Stat(name)
		if err != nil {
			text += name + err.Error() + "\n"
			continue
		}
		text += fmt.Sprintf("%s %d %d\n", name, st.Size(), st.ModTime().UnixNano())
	}
	return text
}
