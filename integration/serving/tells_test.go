package serving

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// page asks the daemon's page over its socket.
type page struct {
	t      *testing.T
	client http.Client
}

func newPage(t *testing.T, socket string) *page {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &page{t, http.Client{Transport: transport, Timeout: time.Minute}}
}

// get gives an answer; the code is 0 if there is none.
func (p *page) get(path string) (code int, body []byte) {
	p.t.Helper()
	r, err := p.client.Get("http://localhost" + path)
	if err != nil {
		return 0, nil
	}
	defer r.Body.Close()
	if body, err = io.ReadAll(r.Body); err != nil {
		p.t.Errorf("%s: %v", path, err)
	}
	return r.StatusCode, body
}

// TestServingTells: one daemon backs up a VM, shows its page, tells Prometheus,
// shares the point over WebDAV, and tells people of another VM that fails; with a
// new configuration the page is elsewhere.
func TestServingTells(t *testing.T) {
	available(t)
	t.Parallel()
	h := newHost(t, 5*time.Second)
	v := startVMs(t, filepath.Join(h.dir, "vm"), 1)[0]
	for block := 1; block <= 2; block++ {
		if err := v.write(77, block); err != nil {
			t.Fatal(err)
		}
	}
	mails := filepath.Join(h.dir, "mails")
	program := filepath.Join(h.dir, "sendmail")
	h.write(program, "#!/bin/sh\ncat >>"+mails+"\n")
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	configuration := func(socket string) string {
		return fmt.Sprintf(`[repository.main]
address = %q
key_file = %q
gc = "never"
check = "never"
[vm.%s]
qmp = %q
[vm.gone]
qmp = "%s/gone.qmp"
[job.hourly]
vms = ["*"]
schedule = "hourly"
[web]
listen = ["unix:%s"]
webdav = true
[notify]
mail = [%q]
mail_to = ["root"]
`, h.repo, h.key, v.name, v.qmp, h.dir, socket, program)
	}
	first, second := filepath.Join(h.dir, "page"), filepath.Join(h.dir, "page2")
	h.configure(configuration(first))
	h.begin()
	h.allGood("the VM is backed up", []*vm{v})

	p := newPage(t, first)
	h.waitFor("the page shows the VM's point", time.Minute, func() bool {
		code, body := p.get("/")
		return code == http.StatusOK && bytes.Contains(body, []byte(v.name)) && bytes.Contains(body, []byte("gone"))
	})
	_, metrics := p.get("/metrics")
	for _, want := range []string{`cairn_vm_last_success_timestamp_seconds{`, `vm="` + v.name + `"`, `cairn_vm_failures{`} {
		if !bytes.Contains(metrics, []byte(want)) {
			t.Errorf("/metrics has no %s:\n%.3000s", want, metrics)
		}
	}
	if code, body := p.get("/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d %s", code, body)
	}
	var disk []byte
	h.waitFor("the disk is shared", time.Minute, func() bool {
		code, body := p.get("/dav/main/" + v.name + "/latest/disks/vda.raw")
		disk = body
		return code == http.StatusOK
	})
	if len(disk) != diskSize || !bytes.Equal(disk[64<<10:192<<10], bytes.Repeat([]byte{77}, 128<<10)) || bytes.ContainsFunc(disk[:64<<10], func(r rune) bool { return r != 0 }) {
		t.Errorf("over WebDAV the disk has %d bytes, or other ones", len(disk))
	}

	h.configure(configuration(second))
	p2 := newPage(t, second)
	h.waitFor("the page is where the new configuration says", time.Minute, func() bool { code, _ := p2.get("/"); return code == http.StatusOK })
	if code, _ := p.get("/"); code != 0 {
		t.Errorf("the page is where it was, too: %d", code)
	}
	h.waitFor("a mail tells of the VM that fails", 3*time.Minute, func() bool {
		b, _ := os.ReadFile(mails)
		return strings.Contains(string(b), "gone") && strings.Contains(string(b), "To: root")
	})
	if code := h.stop(); code != 0 {
		t.Errorf("the daemon ended with %d", code)
	}
}
