package job

import (
	"testing"
	"time"

	"cairn/index/restorepoint"
)

func TestPaceSentence(t *testing.T) {
	for _, c := range []struct {
		name                  string
		probe, read, commit   time.Duration
		source, store         time.Duration
		bytes                 int64
		readLimit, writeLimit int64
		want                  string
	}{
		{name: "idle", probe: 300 * time.Millisecond, read: 0, commit: 100 * time.Millisecond,
			want: "0.4 s, of which asking QEMU and the repository took 0.3 s"},
		{name: "fast", read: 2 * time.Second, bytes: 1 << 30, source: time.Second,
			want: "2.0 s, of which reading the disks took 2.0 s (512 MiB/s)"},
		{name: "slow storage", read: 100 * time.Second, bytes: 1 << 30, source: 90 * time.Second, store: time.Second,
			want: "1m40s, of which reading the disks took 1m40s (10 MiB/s: slow because QEMU or the storage below the VM's images gave no more)"},
		{name: "slow repository", read: 100 * time.Second, bytes: 1 << 30, source: time.Second, store: 90 * time.Second,
			want: "1m40s, of which reading the disks took 1m40s (10 MiB/s: slow because this host or the repository took no more)"},
		{name: "limited", read: 100 * time.Second, bytes: 1 << 30, source: 90 * time.Second, readLimit: 11 << 20,
			want: "1m40s, of which reading the disks took 1m40s (10 MiB/s: held to 11 MiB/s by --read-limit)"},
		{name: "limited writes", read: 100 * time.Second, bytes: 1 << 30, store: 90 * time.Second, writeLimit: 1 << 20,
			want: "1m40s, of which reading the disks took 1m40s (10 MiB/s: held up by --write-limit 1.0 MiB/s)"},
	} {
		now := time.Unix(0, 0)
		p := newPace(func() time.Time { return now })
		for _, phase := range []struct {
			name string
			took time.Duration
		}{{phaseProbe, c.probe}, {phaseRead, c.read}, {phaseCommit, c.commit}} {
			p.enter(phase.name)
			now = now.Add(phase.took)
		}
		p.source, p.store = c.source, c.store
		if got := p.sentence(restorepoint.Statistics{BytesRead: c.bytes}, c.readLimit, c.writeLimit); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
