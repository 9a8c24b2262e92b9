package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"cairn/cmd/internal/web"
	"cairn/cmd/internal/web/webtest"
	"cairn/cmd/internal/wire"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "webdemo:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "webdemo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w, err := webtest.NewWorld(ctx, dir, time.Now(), 80)
	if err != nil {
		return err
	}
	defer w.Close()
	address := "127.0.0.1:8420"
	if len(args) > 0 {
		address = args[0]
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	go func() {
		for range time.Tick(time.Second) {
			for _, r := range w.Daemon.Status().Running {
				w.Daemon.Step(r.ID, "reading vda", (r.Done+37<<20)%(8<<30), 8<<30)
			}
		}
	}()
	fmt.Println("http://" + address + "/")
	server := &http.Server{Handler: web.New(web.Options{Status: w.Daemon.Status, Book: w.Daemon.Book(), Library: w.Library, Find: wire.Find, Log: log}), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}
