package main

import (
	"context"
	"fmt"
	"os"
	"runtime/pprof"

	"golang.org/x/sys/unix"

	"cairn/cmd/internal/cli"
	"cairn/cmd/internal/heap"
)

// version is set by the linker.
var version = "unknown"

// memoryLimit is where the garbage collector begins to work harder, in bytes,
// unless GOMEMLIMIT says otherwise. It is no bound: those of the stages are.
const memoryLimit = 150 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		heap.Limit(memoryLimit) // for as long as it runs
	}
	// No core dump, no debugger of the same user: the memory holds keys.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "cairn: this system cannot keep keys out of core dumps:", err)
	}
	stop := profile(os.Getenv("CAIRN_CPU_PROFILE"))
	code := cli.Run(context.Background(), version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// profile writes a CPU profile of the run to path, for developers; "" writes
// none.
func profile(path string) (stop func()) {
	if path == "" {
		return func() {}
	}
	f, err := os.Create(path)
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cairn: CPU profile:", err)
		return func() {}
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close() // a developer looks at it anyway
	}
}
