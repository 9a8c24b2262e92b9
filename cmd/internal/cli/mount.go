package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/fs"
	"cairn/index/restorepoint"
)

// How the process in the background answers, and gets a secret that was
// typed.
const (
	readyFD   = 3
	secretFD  = 4
	envReady  = "CAIRN_INTERNAL_READY_FD"
	envSecret = "CAIRN_INTERNAL_SECRET_FD"
)

// Timeouts of the mount's start and of a busy mount's end.
const (
	readyTimeout   = 2 * time.Minute
	unmountTimeout = 10 * time.Second
)

func (a *app) mountCmd() *cobra.Command {
	var foreground, rawLinks, allowOther bool
	c := &cobra.Command{
		Use:               "mount FOLDER",
		ValidArgsFunction: completeFolder,
		Short:             "Show every restore point as a directory tree",
		Long: `Show every restore point as a directory tree, read-only:

  FOLDER/<vm>/latest/fs/…                       the guest's own view of the newest point
  FOLDER/<vm>/2026-10-12T02-00-00Z/fs/…         the same for every point
                                  /volumes/…    each filesystem by itself
                                  /disks/*.raw  each disk, sparse
                                  /apps/…       applications, containers, users: what each is, and links into fs/
                                  /machine/     how the VM was started
                                  /point.json   what the point is, and what could not be shown
                                  /changes      what differs from the point before it
  FOLDER/<vm>/history/PATH/…                    what PATH was: one entry for each distinct contents

The command returns when the mount answers. End it with: umount FOLDER
Symbolic links of a guest are shown so that they stay inside its tree; the raw
target is in the attribute security.cairn.link, and --raw-links shows it.`,
		Args: args(1, 1),
		RunE: func(c *cobra.Command, argv []string) error {
			if a.repo == "" {
				return usagef("no repository named: use -r FOLDER or CAIRN_REPOSITORY")
			}
			if !foreground {
				return a.mountBackground(c.Context(), argv[0])
			}
			o := fs.Options{RawLinks: rawLinks, AllowOther: allowOther, Derive: wire.Derive(a.find)}
			o.Report = func(err error) { fmt.Fprintf(a.stderr, "%s cairn: %v\n", a.now().UTC().Format(time.RFC3339), err) }
			return a.mountForeground(c.Context(), argv[0], o)
		},
	}
	c.Flags().BoolVar(&foreground, "foreground", false, "stay, and serve the mount from this process")
	c.Flags().BoolVar(&rawLinks, "raw-links", false, "show symbolic links as the guest has them; none can then be followed")
	c.Flags().BoolVar(&allowOther, "allow-other", false, "let other users in: host user 1000 then reads what guest user 1000 can")
	return c
}

func (a *app) mountForeground(ctx context.Context, dir string, o fs.Options) error {
	ready := func(error) {}
	if a.getenv(envReady) != "" {
		pipe := os.NewFile(readyFD, "ready")
		ready = func(err error) { // nobody at the other end: nobody waits
			if err == nil {
				_, _ = pipe.WriteString(readyAnswer)
			} else {
				fmt.Fprintf(pipe, "%d %s", exitCode(ctx, err), err)
			}
			_ = pipe.Close()
		}
	}
	err := a.serveMount(ctx, dir, o, ready)
	if err != nil {
		ready(err)
	}
	return err
}

// readyAnswer is what the process in the background says when the mount
// answers; anything else is a code and an error.
const readyAnswer = "ready"

// errNotWalked is what a mount says of a point that has no good catalogue: to
// look at all its files may take longer than whoever looks waits.
var errNotWalked = errors.New("it has no catalogue of files, or a damaged one; cairn catalogue --all makes those that are missing")

func (a *app) serveMount(ctx context.Context, dir string, o fs.Options, ready func(error)) error {
	// The catalogue lives until the mount has ended, also after a signal.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	repo, err := a.openForMount(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	if err := repo.Store.MayRead(); err != nil {
		return err
	}
	cat := repo.NewCatalogue(life, mountCache)
	defer cat.Close()
	files := cat.NewOpener()
	files.Walk = func(restorepoint.Summary, error) error { return errNotWalked }
	o.Files = files
	server, err := fs.Mount(ctx, dir, cat, o)
	if err != nil {
		return err
	}
	a.say("mounted %s at %s", a.repo, dir)
	ready(nil)
	ended := make(chan struct{})
	go func() {
		server.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	uctx, stop := context.WithTimeout(life, unmountTimeout)
	defer stop()
	if err := server.Unmount(uctx); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	<-ended
	return nil
}

// openForMount opens the repository with the secret that the parent process
// was given, if it was.
func (a *app) openForMount(ctx context.Context) (*wire.Repo, error) {
	if a.getenv(envSecret) == "" {
		return a.open(ctx)
	}
	pipe := os.NewFile(secretFD, "secret")
	b, err := io.ReadAll(io.LimitReader(pipe, 1<<16))
	_ = pipe.Close() // read to its end
	if err != nil {
		return nil, err
	}
	given := wire.Secret{Prompt: func(string) (string, error) { return string(b), nil }}
	return a.opened(wire.OpenRepo(ctx, a.repo, given, a.dirs()))
}

// mountBackground starts the server as a process of its own and returns when
// it answers.
func (a *app) mountBackground(ctx context.Context, dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	pid, err := a.startMount(ctx, append(slices.Clone(os.Args[1:]), "--foreground"))
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"message_type": "mounted", "folder": abs, "pid": pid})
	}
	a.say("mounted at %s; end it with: umount %s", abs, abs)
	return nil
}

// startMount starts `cairn mount --foreground` with the given arguments, waits
// until it answers, and gives its process.
func (a *app) startMount(ctx context.Context, argv []string) (pid int, err error) {
	ready, readyW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	log, err := a.mountLog()
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command(a.exe, argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = append(os.Environ(), envReady+"=1")
	cmd.ExtraFiles = []*os.File{readyW}
	cmd.Stderr = log
	if a.passwordFile == "" && a.secret().Prompt != nil {
		if err := a.typedSecret(ctx, cmd); err != nil {
			return 0, err
		}
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for _, f := range cmd.ExtraFiles {
		_ = f.Close() // the child has its own
	}
	return cmd.Process.Pid, waitReady(ctx, cmd, ready, log.Name())
}

// waitReady waits for the child's answer.
func waitReady(ctx context.Context, cmd *exec.Cmd, ready io.Reader, log string) error {
	answer := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(ready, 1<<16)) // a read error is an answer like none
		answer <- string(b)
	}()
	select {
	case text := <-answer:
		if text == readyAnswer {
			return nil
		}
		_ = cmd.Wait() // its error is in the text
		if text == "" {
			return fmt.Errorf("the mount's process ended without a word (see %s)", log)
		}
		return childError(text)
	case <-time.After(readyTimeout):
		_ = cmd.Process.Kill() // it hangs
		return fmt.Errorf("the mount does not answer within %s (see %s)", readyTimeout, log)
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM) // it unmounts by itself
		return context.Cause(ctx)
	}
}

// typedSecret asks for the secret here, where the terminal is, and passes it
// on by a pipe.
func (a *app) typedSecret(ctx context.Context, cmd *exec.Cmd) error {
	typed := ""
	s := a.secret()
	ask := s.Prompt
	s.Prompt = func(q string) (string, error) {
		var err error
		typed, err = ask(q)
		return typed, err
	}
	repo, err := wire.OpenRepo(ctx, a.repo, s, a.dirs()) // a wrong one is said here
	if err != nil {
		return err
	}
	if err := repo.Close(); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	_, err = w.WriteString(typed) // a pipe holds 64 KiB: this never waits
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	cmd.Env = append(cmd.Env, envSecret+"=1")
	return nil
}

// mountLog is where the process in the background writes what went wrong.
func (a *app) mountLog() (*os.File, error) {
	dir := a.dirs().State
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, "mount.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// childError reads what ready wrote.
func childError(text string) error {
	var code int
	head, rest, _ := strings.Cut(text, " ")
	if _, err := fmt.Sscanf(head, "%d", &code); err != nil {
		return errors.New(text)
	}
	return codeError{code, strings.TrimPrefix(rest, errUsage.Error()+": ")}
}
