package serve

import (
	"net"
	"os"
	"strconv"
	"time"
)

// systemd is told what the daemon does, by sd_notify(3)'s protocol: a datagram
// to a socket. The zero value tells nobody.
type systemd struct {
	socket   string
	watchdog time.Duration // how often it wants to hear that the daemon lives
}

// findSystemd reads what systemd has put into the environment.
func findSystemd(getenv func(string) string) systemd {
	s := systemd{socket: getenv("NOTIFY_SOCKET")}
	if pid := getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return s
	}
	if us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		s.watchdog = time.Duration(us) * time.Microsecond / 3
	}
	return s
}

// tell sends a state. That it cannot be sent harms nothing but systemd's view.
func (s systemd) tell(state string) {
	if s.socket == "" {
		return
	}
	name := s.socket
	if name[0] == '@' { // of the abstract namespace
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // a unix socket has deadlines
	_, _ = conn.Write([]byte(state))
}
