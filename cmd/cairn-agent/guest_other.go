//go:build !linux

package main

import (
	"context"
	"os"
	"runtime"

	"cairn/guest/agent"
	"cairn/guest/object"
)

// found gives no collectors: only those of Linux guests are written.
func found() []agent.Named { return nil }

// describe tells of the guest as a whole.
func describe(context.Context) (agent.Machine, error) {
	name, err := os.Hostname()
	return agent.Machine{Hostname: name, OS: object.OS{ID: runtime.GOOS, Machine: runtime.GOARCH}}, err
}
