package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"cairn/guest/agent"
	"cairn/guest/agent/config"
	"cairn/guest/agent/receive"
)

// closeTime is how long the end waits for steps that are owed; the unit
// waits longer. What is not done then is done at the next start.
const closeTime = 75 * time.Second

// serve runs the agent until it is told to end.
func (a *app) serve(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	inside, log, c := a.agent()
	for _, p := range c.Problems {
		log.Warn("configuration", "problem", p.Error())
	}
	if err := inside.Start(ctx); err != nil {
		inside.Close(ctx)
		return err
	}
	// Only now: it writes to filesystems that may have stood until here, and what
	// a running agent puts is that agent's.
	for _, did := range receive.New(a.stateDir).Recover(ctx) {
		log.Warn("files that were being put back when an agent was killed", "undone", did)
	}
	inside.StartOwed() // whose files are as they were now
	// At once, and not only when the call that is being answered has ended.
	forget := context.AfterFunc(ctx, func() { inside.End(context.WithoutCancel(ctx)) })
	defer forget()
	err := a.listen(ctx, inside, log)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	inside.Close(closing)
	return err
}

// agent makes the agent as the configuration wants it.
func (a *app) agent() (*agent.Agent, *slog.Logger, *config.Config) {
	c := config.Load(a.config)
	held := agent.NewLog(a.stderr)
	log := slog.New(slog.NewTextHandler(held, &slog.HandlerOptions{Level: c.LogLevel, ReplaceAttr: withoutTime}))
	slog.SetDefault(log) // also for what package log is told
	return agent.New(agent.Options{
		Version: version, Log: held, Logger: log,
		Collectors:  collectors(a.config, c),
		Machine:     describe,
		Put:         put(receive.New(a.stateDir, a.runDir)),
		FreezeLimit: c.FreezeLimit, RunDir: a.runDir, StateDir: a.stateDir, Below: a.below,
	}), log, c
}

// withoutTime: the journal has it.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && os.Getenv("JOURNAL_STREAM") != "" {
		return slog.Attr{}
	}
	return a
}

func (a *app) listen(ctx context.Context, h agent.Handler, log *slog.Logger) error {
	if a.socket == "" {
		log.Info("serving", "version", version, "port", a.port)
		return agent.ServePort(ctx, a.port, h, log)
	}
	if err := os.Remove(a.socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	// Nobody else may connect in the time between.
	l, err := (&net.ListenConfig{Control: private}).Listen(ctx, "unix", a.socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log.Info("serving", "version", version, "socket", a.socket)
	return agent.ServeSocket(ctx, l, h, log)
}
