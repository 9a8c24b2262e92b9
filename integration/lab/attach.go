package lab

import "path/filepath"

// Attach gives a guest that somebody else has started from the lab's command
// line, with its sockets in dir: a restored one. Shell, Command and WaitBooted
// work; its end is whoever started it's.
func Attach(dir string) *Guest {
	return &Guest{
		ControlSocket: filepath.Join(dir, "control.sock"),
		QMPSocket:     filepath.Join(dir, "qmp.sock"),
		QGASocket:     filepath.Join(dir, "qga.sock"),
		AgentSocket:   filepath.Join(dir, "agent.sock"),
		ConsoleSocket: filepath.Join(dir, "console.sock"),
		ConsoleLog:    filepath.Join(dir, "console.log"),
		opts:          Options{Name: filepath.Base(dir), Dir: dir},
		console:       newTurn(),
		control:       newTurn(),
		proc:          &process{done: make(chan struct{})},
	}
}
