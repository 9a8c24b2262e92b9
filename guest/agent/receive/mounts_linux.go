package receive

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// mount is one line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id    int
	point string
	kind  string
}

// maxMounts bounds what is read of mountinfo, bytes.
const maxMounts = 8 << 20

// pseudo are filesystems that hold no files of anybody.
var pseudo = []string{
	"anon_inodefs", "autofs", "bdev", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "cpuset", "debugfs",
	"devpts", "devtmpfs", "efivarfs", "functionfs", "fusectl", "hugetlbfs", "mqueue", "nfsd", "nsfs", "pipefs", "proc", "pstore",
	"resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs", "sockfs", "spufs", "sysfs", "tracefs",
}

func isPseudo(kind string) bool { return slices.Contains(pseudo, kind) }

// readMounts gives what is mounted as this process sees it.
func readMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(io.LimitReader(f, maxMounts))
}

func parseMounts(r io.Reader) ([]mount, error) {
	var list []mount
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		front, back, ok := strings.Cut(s.Text(), " - ")
		f := strings.Fields(front)
		kind, _, _ := strings.Cut(back, " ")
		if !ok || len(f) < 5 || kind == "" {
			return nil, fmt.Errorf("mountinfo: line %q makes no sense", s.Text())
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, fmt.Errorf("mountinfo: line %q: %w", s.Text(), err)
		}
		list = append(list, mount{id: id, point: unescape(f[4]), kind: kind})
	}
	return list, s.Err()
}

// unescape undoes the \040 of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOf gives the mount that an open file is on.
func mountOf(list []mount, fd int) (mount, error) {
	id, err := mountID(fd)
	if err != nil {
		return mount{}, err
	}
	for _, m := range list {
		if m.id == id {
			return m, nil
		}
	}
	return mount{}, errNoMount
}

var errNoMount = errors.New("it cannot be said on which mount it is")

// mountID gives the number of the mount that an open file is on.
func mountID(fd int) (int, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	for line := range bytes.SplitSeq(info, []byte("\n")) {
		if text, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			if id, err := strconv.Atoi(string(bytes.TrimSpace(text))); err == nil {
				return id, nil
			}
		}
	}
	return 0, errNoMount
}

// mountedBelow gives a mount point at or below a path, "" if there is none.
func mountedBelow(list []mount, path string) string {
	for _, m := range list {
		if m.point == path || strings.HasPrefix(m.point, path+"/") {
			return m.point
		}
	}
	return ""
}
