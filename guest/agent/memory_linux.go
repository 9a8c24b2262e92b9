package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// holdMemory keeps this process in memory until release is called: while the
// filesystems stand, and the host may have stopped their disks, nothing shall
// have to be read from one. What is there is locked, also what is added later
// but only once it is used: Go reserves far more than it needs. The program's own
// pages, most of which were never read, are read now.
func holdMemory() (release func(), err error) {
	// Less garbage to lock, and none to be collected in the next moments.
	runtime.GC()
	release = func() { _ = unix.Munlockall() } // it has no reason to fail
	err = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	if errors.Is(err, unix.EINVAL) { // before Linux 4.4
		return release, nil
	}
	if err != nil {
		return func() {}, fmt.Errorf("lock the memory: %w", err)
	}
	return release, readProgram()
}

// readProgram brings in and locks what is mapped from files: the program.
func readProgram() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	var failure error
	for line := range bytes.Lines(maps) {
		start, length, ok := fileMapping(string(line))
		if !ok {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, start, length, 0); errno != 0 && failure == nil {
			failure = fmt.Errorf("lock the program: %w", errno)
		}
	}
	return failure
}

// fileMapping reads a line of /proc/self/maps: "55d0-55e0 r-xp 0000 fe:00 1234
// /usr/sbin/cairn-agent". What is not mapped from a file, or not readable, is
// not meant.
func fileMapping(line string) (start, length uintptr, ok bool) {
	var from, to uint64
	var mode, offset, dev string
	var inode uint64
	if n, err := fmt.Sscanf(line, "%x-%x %s %s %s %d", &from, &to, &mode, &offset, &dev, &inode); err != nil || n != 6 {
		return 0, 0, false
	}
	return uintptr(from), uintptr(to - from), inode != 0 && to > from && mode != "" && mode[0] == 'r'
}

// usage gives the memory that this process has in RAM, and the processor time
// that it and its ended children took.
func usage() (rss, cpuMS int64) {
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(b); len(fields) > 1 {
			pages, _ := strconv.ParseInt(string(fields[1]), 10, 64) // the kernel's
			rss = pages * int64(os.Getpagesize())
		}
	}
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err == nil {
			cpuMS += (u.Utime.Nano() + u.Stime.Nano()) / 1e6
		}
	}
	return rss, cpuMS
}

// bootID tells this boot of the machine from any other, "" if it cannot.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // "" then
	return string(bytes.TrimSpace(b))
}
