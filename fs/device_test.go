package fs

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hangs is a file system whose look-ups never end unless interrupted.
type hangs struct{ fuse.RawFileSystem }

func (hangs) Lookup(cancel <-chan struct{}, _ *fuse.InHeader, _ string, _ *fuse.EntryOut) fuse.Status {
	<-cancel
	return fuse.EINTR
}

// A request that began before the watchdog first looked is given up like any
// other. A pair of sockets stands for /dev/fuse: it keeps messages apart too.
func TestWatchdogSeesRequestsFromBeforeItSlept(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	report := func(error) {}
	d := &device{
		fd: pair[0], protocol: fuse.NewProtocolServer(hangs{fuse.NewDefaultRawFileSystem()}, protocolOptions(Options{}, report)),
		deadline: 50 * time.Millisecond, report: report,
		gone: make(chan struct{}), wake: make(chan struct{}, 1), readers: map[*reader]bool{},
	}
	d.spawn()
	request := make([]byte, inHeaderSize+2) // LOOKUP of "x" in the root
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint32(request[4:], 1)
	binary.NativeEndian.PutUint64(request[8:], 7)
	binary.NativeEndian.PutUint64(request[16:], fuse.FUSE_ROOT_ID)
	request[inHeaderSize] = 'x'
	if _, err := unix.Write(pair[1], request); err != nil {
		t.Fatal(err)
	}
	for d.busy.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	d.running.Add(1)
	go d.watch()
	if err := unix.SetsockoptTimeval(pair[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1000)
	n, err := unix.Read(pair[1], answer)
	if err != nil || n != outHeaderSize || int32(binary.NativeEndian.Uint32(answer[4:])) != -int32(unix.EIO) || binary.NativeEndian.Uint64(answer[8:]) != 7 {
		t.Errorf("answer %v, %v; want EIO for request 7", answer[:max(0, n)], err)
	}
	unix.Shutdown(pair[1], unix.SHUT_RDWR)
	d.wait()
	unix.Close(pair[1])
}
