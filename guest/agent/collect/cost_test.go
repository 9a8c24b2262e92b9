//go:build linux

package collect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/guest/object/discover"
)

// counted counts what is asked of a tree.
type counted struct {
	tree
	calls *atomic.Int64
}

func (c counted) ReadFile(name string, limit int64) ([]byte, error) {
	c.calls.Add(1)
	return c.tree.ReadFile(name, limit)
}
func (c counted) ReadDir(name string, limit int) ([]string, error) {
	c.calls.Add(1)
	return c.tree.ReadDir(name, limit)
}
func (c counted) Stat(name string) (discover.Info, error) {
	c.calls.Add(1)
	return c.tree.Stat(name)
}

// dataDirs are where a guest has its many files.
func dataDirs() []string {
	return []string{"home/anna", "var/www/html", "var/lib/redis", "var/lib/postgresql/15/main/base/5", "var/lib/docker/volumes/v/_data", "srv/docker-upper", "var/lib/mysql/shop"}
}

func guestWithData(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n", "etc/group": "anna:x:1000:\n",
		"etc/nginx/nginx.conf": "http { server { server_name a; root /var/www/html; } }", "etc/redis/redis.conf": "port 1\ndir /var/lib/redis\n",
		"var/lib/postgresql/15/main/PG_VERSION": "15\n", "etc/mysql/my.cnf": "[mysqld]\n", "var/lib/mysql/mysql/db.frm": "",
		"var/lib/docker/containers/c1/config.v2.json": `{"ID":"c1","Name":"/web","Driver":"overlay2","MountPoints":{"/d":{"Name":"v","Driver":"local","Type":"volume","Destination":"/d"}}}`,
		"var/lib/dpkg/status":                         "Package: a\nStatus: install ok installed\nVersion: 1\n",
	} {
		l.write(name, text)
	}
	for _, dir := range dataDirs() {
		l.write(dir+"/0/first", "")
	}
	return l
}

// fill makes empty files in a guest's data directories, a thousand in each
// directory.
func (l *lab) fill(files int) {
	l.t.Helper()
	dirs := dataDirs()
	for n := 0; n < files; n += 1000 {
		dir := filepath.Join(l.dir, dirs[n/1000%len(dirs)], fmt.Sprint(n/10_000), fmt.Sprint(n/1000))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			l.t.Fatal(err)
		}
		for i := range min(1000, files-n) {
			fd, err := syscall.Open(filepath.Join(dir, fmt.Sprint(i)), syscall.O_CREAT|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o644)
			if err != nil {
				l.t.Fatal(err)
			}
			syscall.Close(fd)
		}
	}
}

// inventories runs all collectors on a lab, and gives what they asked of the
// tree, the processor time that they and their children took, and the objects.
func (l *lab) inventories(t *testing.T) (calls int64, cpu time.Duration, objects int) {
	t.Helper()
	g := l.guest()
	var n atomic.Int64
	open := g.open
	g.open = func() tree { return counted{open(), &n} }
	before := cpuTime(t)
	for _, c := range all(g) {
		found, err := c.Inventory(context.Background())
		if err != nil {
			t.Log(err)
		}
		objects += len(found)
	}
	return n.Load(), cpuTime(t) - before, objects
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	total := time.Duration(0)
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			t.Fatal(err)
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total
}

// TestCostDoesNotGrowWithFiles: what is asked of a guest's tree is the same with
// three thousand files in it, with the long tests a million.
func TestCostDoesNotGrowWithFiles(t *testing.T) {
	files := 3000
	if os.Getenv("CAIRN_LONG") != "" {
		files = 1_000_000
	}
	l := guestWithData(t)
	few, cpuFew, objects := l.inventories(t)
	if objects < 6 {
		t.Errorf("%d objects", objects)
	}
	start := time.Now()
	l.fill(files)
	t.Logf("%d files made in %v", files, time.Since(start).Round(time.Millisecond))
	start = time.Now()
	many, cpu, same := l.inventories(t)
	if many != few || same != objects {
		t.Errorf("%d objects for %d calls, it was %d for %d", same, many, objects, few)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	memory := ""
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM:") || strings.HasPrefix(line, "RssAnon:") {
			memory += " " + strings.Join(strings.Fields(line), " ")
		}
	}
	t.Logf("%d calls; %v of processor time, %v before; %v in all;%s", many, cpu, cpuFew, time.Since(start), memory)
}
