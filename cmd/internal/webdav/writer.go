package webdav

import (
	"net/http"
	"time"
)

// Bounds of an answer.
const (
	// holdBack is how much of one is kept until more comes: what fails in the
	// beginning gets a status.
	holdBack = 256 << 10
	// clientWait is how long a client may take for a piece of it.
	clientWait = time.Minute
)

// writer holds back the beginning of an answer.
type writer struct {
	w       http.ResponseWriter
	wait    time.Duration // for the client, per piece
	c       *http.ResponseController
	status  int
	held    []byte
	sent    bool // the client may have something of it
	dropped bool // another answer is given
}

// Header implements http.ResponseWriter.
func (o *writer) Header() http.Header { return o.w.Header() }

// WriteHeader implements http.ResponseWriter. What comes second is the library's
// way to say that it could not go on.
func (o *writer) WriteHeader(status int) {
	if o.status == 0 {
		o.status = status
	}
}

// Write implements http.ResponseWriter.
func (o *writer) Write(p []byte) (int, error) {
	o.WriteHeader(http.StatusOK)
	if !o.sent && len(o.held)+len(p) <= holdBack {
		o.held = append(o.held, p...)
		return len(p), nil
	}
	if err := o.flush(); err != nil {
		return 0, err
	}
	o.more()
	return o.w.Write(p)
}

// more gives the client time for one more piece; where that cannot be set, the
// server's own limits hold.
func (o *writer) more() { _ = o.c.SetWriteDeadline(time.Now().Add(o.wait)) }

func (o *writer) flush() error {
	if o.sent {
		return nil
	}
	o.sent = true
	o.more()
	if o.status != 0 {
		o.w.WriteHeader(o.status)
	}
	_, err := o.w.Write(o.held)
	o.held = nil
	return err
}

// end sends what is held back, and lets the connection's next request have its own
// time.
func (o *writer) end() {
	if !o.dropped && o.status != 0 {
		_ = o.flush() // the client is gone: nobody to tell
	}
	if !o.dropped {
		_ = o.c.SetWriteDeadline(time.Time{})
	}
}
