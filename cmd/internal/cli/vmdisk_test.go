package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/cmd/internal/config"
)

// TestParseDisk: what --disk takes and refuses. The format of a file that says
// what it is is found once; one that may be a raw disk in disguise is not.
func TestParseDisk(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, header []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, append(header, make([]byte, 4096-len(header))...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// A version 3 header: 64 KiB clusters, an empty refcount table, 16-bit counts.
	header := make([]byte, 104)
	copy(header, "QFI\xfb\x00\x00\x00\x03")
	header[23], header[99] = 16, 4
	withBacking := bytes.Clone(header)
	withBacking[15] = 1
	withData := bytes.Clone(header)
	withData[79] = 4
	plain, raw := write("plain.qcow2", header), write("a,b.raw", nil)
	for _, c := range []struct {
		value string
		want  config.Disk
		fails string
	}{
		{value: "vda=" + plain, want: config.Disk{Name: "vda", File: plain, Format: "qcow2"}},
		{value: "vda=" + plain + ",serial=S1", want: config.Disk{Name: "vda", File: plain, Format: "qcow2", Serial: "S1"}},
		{value: "vda=" + raw + ",format=raw", want: config.Disk{Name: "vda", File: raw, Format: "raw"}},
		{value: "vda=" + raw + ",serial=x,format=raw", want: config.Disk{Name: "vda", File: raw, Format: "raw", Serial: "x"}},
		{value: "vda=/not/there,format=raw", want: config.Disk{Name: "vda", File: "/not/there", Format: "raw"}}, // it may be mounted later
		{value: "vda=" + raw, fails: "if it is raw, say so"},
		{value: "vda=" + write("backing", withBacking), fails: "say what it is"},
		{value: "vda=" + write("data", withData), fails: "say what it is"},
		{value: "vda=/not/there", fails: "no such file"},
		{value: "vda=relative,format=raw", fails: "from the root on"},
		{value: "vda=" + plain + ",format=vmdk", fails: "only qcow2 and raw"},
		{value: "vda", fails: "NAME=FILE"},
		{value: "=/x", fails: "NAME=FILE"},
	} {
		got, err := parseDisk(c.value)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: want %q, got %v", c.value, c.fails, err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v", c.value, got, err, c.want)
		}
	}
	if _, err := parseDisks([]string{"a=/x,format=raw", "a=/y,format=raw"}); err == nil {
		t.Error("a disk named twice is taken")
	}
}
