package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	mountTimeout   = 2 * time.Minute
	unmountTimeout = 30 * time.Second
	pollEvery      = time.Millisecond
)

// mounted is a tool's mount, served by a process in the foreground.
type mounted struct {
	dir, disk string // the mount point; the disk's raw file in it
	cmd       *exec.Cmd
	errs      *tail
	started   time.Time
	done      chan error // the process's end, once
	opened    values     // firstLsS and firstStatS
}

// mount starts a server and waits until its top can be listed and its disk found, looking every millisecond.
func mount(ctx context.Context, c command, dir, disk string) (*mounted, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	cmd, _, errs := c.prepare(ctx)
	m := &mounted{dir: dir, disk: disk, cmd: cmd, errs: errs, started: time.Now(), done: make(chan error, 1)}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	go func() { m.done <- cmd.Wait() }()
	listed, err := m.until(ctx, m.listed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, errors.Join(err, m.abandon()))
	}
	found, err := m.until(ctx, m.found)
	if err != nil {
		return nil, fmt.Errorf("%s: look for %s: %w", c, disk, errors.Join(err, m.abandon()))
	}
	m.opened = values{firstLsS: listed.Seconds(), firstStatS: found.Seconds()}
	return m, nil
}

// until answers the time from the command's start until ready says yes.
func (m *mounted) until(ctx context.Context, ready func() bool) (time.Duration, error) {
	for !ready() {
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case time.Since(m.started) > mountTimeout:
			return 0, fmt.Errorf("not ready within %v", mountTimeout)
		}
		select {
		case err := <-m.done:
			m.done <- err
			return 0, fmt.Errorf("the mount's process ended: %v: %s", err, m.errs.last(1000))
		case <-time.After(pollEvery):
		}
	}
	return time.Since(m.started), nil
}

// listed says whether something is mounted at the directory and shows an entry.
func (m *mounted) listed() bool {
	var here, above syscall.Stat_t
	if syscall.Stat(m.dir, &here) != nil || syscall.Stat(filepath.Dir(m.dir), &above) != nil || here.Dev == above.Dev {
		return false
	}
	d, err := os.Open(m.dir)
	if err != nil {
		return false
	}
	defer d.Close()
	names, _ := d.Readdirnames(1)
	return len(names) > 0
}

func (m *mounted) found() bool {
	info, err := os.Stat(m.disk)
	return err == nil && info.Size() > 0
}

// serverCPU is what the mount's process has used so far.
func (m *mounted) serverCPU() (time.Duration, error) { return cpuOf(m.cmd.Process.Pid) }

// unmount takes the mount down and measures what its process cost in all its life.
func (m *mounted) unmount() (usage, error) {
	errUmount := syscall.Unmount(m.dir, 0)
	if errUmount != nil {
		errUmount = fmt.Errorf("unmount %s: %w", m.dir, errUmount)
	}
	select {
	case <-m.done:
	case <-time.After(unmountTimeout):
		// A server that lives on after its unmount (kopia waits for a signal) is asked to go.
		if err := m.terminate(); err != nil {
			return usage{}, errors.Join(errUmount, err)
		}
	}
	return used(m.cmd.ProcessState, time.Since(m.started)), errUmount
}

// abandon takes down what may be half up.
func (m *mounted) abandon() error {
	_ = syscall.Unmount(m.dir, syscall.MNT_DETACH) // it may not be mounted at all
	return m.terminate()
}

func (m *mounted) terminate() error {
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-m.done:
		return nil
	case <-time.After(unmountTimeout):
		err := m.cmd.Process.Kill()
		<-m.done
		return errors.Join(fmt.Errorf("the mount's process did not end on SIGTERM"), err)
	}
}

// loopMount mounts the ext4 filesystem inside a disk's file by the kernel, without replaying its journal.
func loopMount(ctx context.Context, file, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := run(ctx, command{path: "mount", args: []string{"-t", "ext4", "-o", fmt.Sprintf("ro,noload,loop,offset=%d", partitionOffset), file, dir}})
	return err
}
