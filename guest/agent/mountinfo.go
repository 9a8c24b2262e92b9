package agent

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// maxMounts bounds how many mounts are looked at: a host of containers has
// thousands.
const maxMounts = 1 << 16

// mount is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id, parent   int
	dev          string // of the superblock, "254:1"; all mounts of a filesystem have the same
	major        int
	root         string // the directory of the filesystem that is mounted
	point        string
	options      string // of the mount
	kind         string // "ext4"
	source       string
	superOptions string
}

// parseMountinfo reads mountinfo's lines in their order, which is that of
// mounting unless one was moved.
func parseMountinfo(b []byte) ([]mount, error) {
	var all []mount
	for line := range bytes.Lines(b) {
		if len(all) == maxMounts {
			return nil, fmt.Errorf("more than %d mounts", maxMounts)
		}
		m, err := parseMount(string(bytes.TrimSuffix(line, []byte("\n"))))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func parseMount(line string) (m mount, err error) {
	bad := func() (mount, error) { return mount{}, fmt.Errorf("mountinfo: %.200q is no mount", line) }
	left, right, ok := strings.Cut(line, " - ")
	fields, more := strings.Split(left, " "), strings.Split(right, " ")
	if !ok || len(fields) < 6 || len(more) < 2 {
		return bad()
	}
	if m.id, err = strconv.Atoi(fields[0]); err != nil {
		return bad()
	}
	if m.parent, err = strconv.Atoi(fields[1]); err != nil {
		return bad()
	}
	m.dev = fields[2]
	major, minor, ok := strings.Cut(m.dev, ":")
	if _, err := strconv.ParseUint(minor, 10, 32); err != nil || !ok {
		return bad()
	}
	if m.major, err = strconv.Atoi(major); err != nil || m.major < 0 {
		return bad()
	}
	m.root, m.point, m.options = unescape(fields[3]), unescape(fields[4]), fields[5]
	m.kind, m.source = unescape(more[0]), unescape(more[1])
	if len(more) > 2 {
		m.superOptions = strings.Join(more[2:], " ")
	}
	if !strings.HasPrefix(m.point, "/") {
		return bad()
	}
	return m, nil
}

// unescape undoes the kernel's \040 for a space, tab, newline or backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// option gives the value of one of a list of options, unescaped.
func option(options, name string) (value string, found bool) {
	for o := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		if key == name {
			return unescape(value), true
		}
	}
	return "", false
}

// within says whether a clean absolute path is dir or lies below it.
func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(dir, "/"))
}
