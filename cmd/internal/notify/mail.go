package notify

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"cairn/cmd/internal/config"
)

// mailer hands messages to a program.
type mailer struct{ config *config.Notify }

func (m mailer) name() string { return "mail" }

func (m mailer) send(ctx context.Context, msg Message) error {
	text, err := msg.mail(m.config.MailFrom, m.config.MailTo)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.config.Mail[0], m.config.Mail[1:]...)
	// Not the daemon's environment: it may hold passphrases.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + os.Getenv("HOME"), "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(text)
	var said tail
	cmd.Stdout, cmd.Stderr = &said, &said
	// With what it started: a script's curl would go on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it did not end within %s", sendTimeout)
		}
		return fmt.Errorf("the mail program %s: %w: %s", m.config.Mail[0], err, clean(string(said)))
	}
	return nil
}

// tail keeps the last bytes that are written to it.
type tail []byte

const maxTail = 400

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p[max(0, len(p)-maxTail):]...)
	if len(*t) > maxTail {
		*t = (*t)[len(*t)-maxTail:]
	}
	return len(p), nil
}
