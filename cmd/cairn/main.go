package main

import (
	"context"
	"os"
	"runtime/debug"

	"cairn/cmd/internal/cli"
)

// version is set by the linker.
var version = "unknown"

// memoryLimit is where the garbage collector begins to work harder, in bytes,
// unless GOMEMLIMIT says otherwise. It is no bound: those of the stages are.
const memoryLimit = 150 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	os.Exit(cli.Run(context.Background(), version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
