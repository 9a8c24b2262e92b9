package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"cairn/cmd/internal/cli"
	"cairn/cmd/internal/heap"
)

// memoryLimit is cairn's own.
const memoryLimit = 150 << 20

func main() {
	heap.Limit(memoryLimit)
	var from, shows int64
	var scale float64
	if _, err := fmt.Sscanf(os.Getenv("CAIRN_TEST_CLOCK"), "%d %d %g", &from, &shows, &scale); err != nil || scale <= 0 {
		fmt.Fprintln(os.Stderr, "CAIRN_TEST_CLOCK:", err)
		os.Exit(2)
	}
	begin, shown := time.Unix(0, from), time.Unix(0, shows)
	clock := cli.Clock{
		Now:   func() time.Time { return shown.Add(time.Duration(float64(time.Since(begin)) * scale)) },
		After: func(d time.Duration) <-chan time.Time { return time.After(time.Duration(float64(d) / scale)) },
	}
	os.Exit(cli.RunBy(context.Background(), clock, "fastclock", os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
