package main

import (
	"context"

	"cairn/guest/agent"
	"cairn/guest/agent/collect"
)

// found gives the collectors of a Linux guest.
func found() (list []agent.Named) {
	for _, c := range collect.All() {
		list = append(list, agent.Named{Name: c.Name(), Collector: c})
	}
	return list
}

// describe tells of the guest as a whole.
func describe(ctx context.Context) (agent.Machine, error) {
	m := agent.Machine{}
	m.OS, m.Hostname = collect.System(ctx)
	var err error
	m.Mounts, err = collect.Mounts(ctx)
	return m, err
}
