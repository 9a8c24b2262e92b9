package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/guest"
	"cairn/qmp/libvirt"
)

// testDomainInside: the inside agent takes part in the backup of a domain: its
// channel is a socket of QEMU's, which libvirt leaves alone.
func testDomainInside(t *testing.T, h *host, d *domain) {
	channel := filepath.Join(h.dir, "channel.xml")
	// The socket's usual place is in a folder that only this test's libvirtd sees.
	text := "<channel type='unix'><source mode='bind' path='" + filepath.Join(h.dir, "inside.sock") + "'/><target type='virtio' name='org.cairn.agent.0'/></channel>"
	if err := os.WriteFile(channel, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.run(t, exitOK, "doctor", vmName).mentions(t, "no channel for cairn-agent")
	d.virsh(t, "attach-device", d.name, channel, "--live")
	dom, err := libvirt.Open(t.Context(), d.uri, d.name)
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Close()
	stock, err := guest.DialBy(t.Context(), "the domain", dom.DialAgent)
	if err != nil {
		t.Fatal(err)
	}
	defer stock.Close()
	binary, err := os.Open(filepath.Join(filepath.Dir(os.Getenv(cairnEnv)), "cairn-agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	// What udev does for a port that is plugged in, in a guest that has one. The
	// port is there a moment after libvirt says so.
	d.shell(t, `mkdir -p /run/inject
for i in $(seq 300); do
	for p in /sys/class/virtio-ports/*; do
		[ "$(cat $p/name 2>/dev/null)" = org.cairn.agent.0 ] && ln -sf /dev/${p##*/} /dev/virtio-ports/org.cairn.agent.0 && exit
	done
	usleep 100000
done
exit 1`)
	if err := stock.WriteFile(t.Context(), "/run/inject/new", binary, nil); err != nil {
		t.Fatal(err)
	}
	d.shell(t, "chmod 755 /run/inject/new && mv /run/inject/new /run/inject/cairn-agent")
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		r := h.start(t, "agent", "status", vmName).wait()
		if r.code == exitOK {
			break
		}
		if time.Since(begin) > answerTime {
			t.Fatalf("cairn-agent does not answer: %s\n%s", r.stderr, d.shell(t, "cat /run/cairn-agent.log"))
		}
	}
	h.run(t, exitOK, "doctor", vmName).mentions(t, "inside agent: version")
	d.change(t, 100)
	r := h.run(t, exitOK, "backup", vmName)
	if !strings.Contains(r.stderr, "takes part") || !strings.Contains(r.stderr, "digest checked") || !strings.Contains(r.stdout, "no application was told") {
		t.Errorf("the backup: %s%s", r.stderr, r.stdout)
	}
	d.shell(t, "rm -rf /srv/www")
	h.run(t, exitOK, "restore", vmName+"@latest:/srv/www", "--into", vmName)
	if got := d.shell(t, "ls /srv"); !strings.Contains(got, "www") {
		t.Errorf("restored into the domain: %s", got)
	}
	d.isAlive(t)
	d.isTidy(t, h)
	// The next steps are of the stock agent.
	d.shell(t, "touch /run/no-cairn-agent; killall cairn-agent; sync")
	d.virsh(t, "detach-device", d.name, channel, "--live")
}
