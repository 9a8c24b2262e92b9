package main

import (
	"context"
	"os"
	"runtime/debug"
)

// version is set by the linker.
var version = "unknown"

// memoryLimit is where the garbage collector begins to work harder, in bytes,
// unless GOMEMLIMIT says otherwise: what is in RAM shall stay under 64 MiB, of
// which the program itself takes about 10.
const memoryLimit = 40 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
