package powercut

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Environment variables that a test's own processes get.
const (
	servedEnv  = "CAIRN_POWERCUT_SERVED"
	privateEnv = "CAIRN_POWERCUT_PRIVATE"
)

// Served is the child's main: where it is true the process was started to serve
// a disk, has done so, and ends with code.
func Served() (code int, served bool) {
	parts := strings.Split(os.Getenv(servedEnv), "\n")
	if len(parts) != 3 {
		return 0, false
	}
	if err := serve(parts[0], parts[1], parts[2], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// Private runs this program again in a mount namespace of its own: where done
// is true it has ended with code. Without the right to do so it does nothing.
func Private() (code int, done bool) {
	if os.Getenv(privateEnv) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	runtime.LockOSThread() // Pdeathsig is of the thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx // it ends with us
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), privateEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), true
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut: no mount namespace:", err)
		return 0, false
	}
	return 0, true
}

// Disk is a file system whose disk is recorded.
type Disk struct {
	Dir string // where it is mounted

	fstype string
	work   string
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr bytes.Buffer
	ended  chan error
	mark   *os.File
	dog    *time.Timer
}

// diskSize holds the 256 MiB that the index wants to see free.
const diskSize = 448 << 20

// makers make file systems that are small where it costs nothing of what is
// tested.
var makers = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "4096", "-J", "size=8", "-E", "lazy_itable_init=0,nodiscard"},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-K"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-K", "-l", "size=64m", "-s", "size=4096", "-d", "agcount=2"},
}

// Available says why no disk can be recorded here; nil when it can.
func Available() error {
	if os.Geteuid() != 0 || os.Getenv(privateEnv) == "" {
		return errors.New("recording a disk takes root, and a mount namespace of its own")
	}
	for _, name := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(name); err != nil {
			return err
		}
	}
	for _, m := range makers {
		if _, err := exec.LookPath(m[0]); err != nil {
			return err
		}
	}
	return nil
}

// Start makes a file system and records its disk from its first mount on. work
// is an empty folder. When patience is over the disk fails, so that whoever
// waits for it goes on.
func Start(fstype, work string, patience time.Duration) (_ *Disk, err error) {
	d := &Disk{Dir: filepath.Join(work, "mounted"), fstype: fstype, work: work, ended: make(chan error, 1)}
	for _, dir := range []string{d.Dir, d.served()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := makeFilesystem(fstype, d.base()); err != nil {
		return nil, err
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.end())
		}
	}()
	d.dog = time.AfterFunc(patience, func() { _ = d.cmd.Process.Kill() }) // it may have ended
	if d.mark, err = os.OpenFile(filepath.Join(d.served(), markName), os.O_WRONLY, 0); err != nil {
		return nil, err
	}
	return d, Mount(fstype, filepath.Join(d.served(), imageName), d.Dir)
}

func (d *Disk) base() string   { return filepath.Join(d.work, "base") }
func (d *Disk) file() string   { return filepath.Join(d.work, "recording") }
func (d *Disk) served() string { return filepath.Join(d.work, "served") }

func makeFilesystem(fstype, image string) error {
	f, err := os.OpenFile(image, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(diskSize), f.Close())
	}
	if err != nil {
		return err
	}
	args := append(makers[fstype][1:], image)
	if out, err := exec.Command(makers[fstype][0], args...).CombinedOutput(); err != nil { //nolint:noctx // it takes milliseconds
		return fmt.Errorf("%s: %w: %s", makers[fstype][0], err, out)
	}
	return nil
}

// start starts the child and waits until it serves.
func (d *Disk) start() error {
	d.cmd = exec.Command("/proc/self/exe") //nolint:noctx // end ends it
	d.cmd.Env = append(os.Environ(), servedEnv+"="+strings.Join([]string{d.base(), d.served(), d.file()}, "\n"))
	d.cmd.Stderr = &d.stderr
	in, err := d.cmd.StdinPipe() // its end is the child's, also when we are killed
	if err != nil {
		return err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.stdin = in
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() { d.ended <- d.cmd.Wait() }()
	if strings.TrimSpace(line) != ready {
		return errors.Join(fmt.Errorf("the recording file system did not start: %w", err), d.end())
	}
	return nil
}

// Mark notes a word in the recording.
func (d *Disk) Mark(text string) error {
	_, err := d.mark.WriteAt([]byte(text), 0)
	return err
}

// End unmounts the disk, and gives its recording.
func (d *Disk) End() (*Recording, error) {
	if err := d.end(); err != nil {
		return nil, err
	}
	return Load(d.file(), d.base())
}

// end ends all that Start has begun.
func (d *Disk) end() error {
	err := Unmount(d.Dir)
	if d.mark != nil {
		err = errors.Join(err, d.mark.Close())
	}
	err = errors.Join(err, d.stdin.Close())
	select {
	case werr := <-d.ended:
		if werr != nil {
			err = errors.Join(err, fmt.Errorf("the recording file system: %w: %s", werr, d.stderr.String()))
		}
	case <-time.After(20 * time.Second):
		err = errors.Join(err, errors.New("the recording file system did not end"), d.cmd.Process.Kill(), <-d.ended)
	}
	if d.dog != nil && !d.dog.Stop() {
		err = errors.Join(err, errors.New("the disk was given up: what used it took too long"))
	}
	return err
}
