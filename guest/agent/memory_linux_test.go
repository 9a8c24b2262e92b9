package agent

import (
	"bytes"
	"os"
	"strconv"
	"testing"
)

func TestMemoryIsHeld(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("locking memory needs root")
	}
	locked := func() int {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := bytes.Cut(b, []byte("VmLck:"))
		n, err := strconv.Atoi(string(bytes.Fields(after)[0]))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	release, err := holdMemory()
	if err != nil {
		t.Fatal(err)
	}
	if kib := locked(); kib < 1000 {
		t.Errorf("only %d KiB are locked", kib)
	}
	release()
	if kib := locked(); kib != 0 {
		t.Errorf("%d KiB are still locked", kib)
	}
	if rss, _ := usage(); rss < 1<<20 {
		t.Errorf("RSS %d", rss)
	}
}

func TestFileMapping(t *testing.T) {
	start, length, ok := fileMapping("55d0c000-55e0c000 r-xp 00001000 fe:00 1234 /usr/sbin/cairn-agent\n")
	if start != 0x55d0c000 || length != 0x100000 || !ok {
		t.Errorf("%x %x %v", start, length, ok)
	}
	for _, line := range []string{"c000000000-c004000000 rw-p 00000000 00:00 0 \n", "1-2 ---p 00000000 fe:00 1234 /x", "", "x"} {
		if _, _, ok := fileMapping(line); ok {
			t.Errorf("%q is taken", line)
		}
	}
}
