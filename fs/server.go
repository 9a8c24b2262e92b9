package fs

import (
	"context"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/fs/tree"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Source is where restore points come from. Its methods may be called from
// many goroutines.
type Source interface {
	// Points lists all restore points, oldest first. It is called again when
	// somebody looks and the last list is older than a second.
	Points(ctx context.Context) ([]restorepoint.Summary, error)
	// Manifest reads the manifest of a listed point.
	Manifest(ctx context.Context, id string) (*restorepoint.Manifest, error)
	// Image opens a disk of a point, by the disk's name.
	Image(ctx context.Context, m *restorepoint.Manifest, disk string) (restorepoint.Image, error)
}

// Options of a mount. The zero value is good.
type Options struct {
	// RawLinks shows the guests' symbolic links as they are. The mount then
	// has the flag nosymfollow: no link in it can be followed.
	RawLinks bool
	// AllowOther lets other users in. They are held to the guests' owners and
	// modes: the host's user 1000 reads what the guest's user 1000 can.
	AllowOther bool
	// Deadline is how long one request may take; 0 is 30 seconds.
	Deadline time.Duration
	// Derive finds the system objects of points without an inside agent's
	// metadata; nil: their apps/ is empty.
	Derive Deriver
	// Files gives the points' catalogues of files, for history/ and changes;
	// nil: there are neither. It is asked for whole points: one that would take
	// long should say no, in words for people.
	Files catalogue.Opener
	// Report is told why something could not be read, at most once for each
	// failed request; nil: nobody is told. It must not use the mount.
	Report func(error)
	// Debug logs every request.
	Debug bool
}

// Server serves one mount.
type Server struct {
	source  Source
	options Options
	dir     string
	device  *device
	mounted time.Time
	now     func() time.Time
	// openTree is tree.Open, or a test's own.
	openTree func(context.Context, *restorepoint.Manifest, func(string) (restorepoint.Image, error)) (*tree.Tree, error)

	// wrap lets a test stand between the kernel and us.
	wrap func(fuse.RawFileSystem) fuse.RawFileSystem

	table    *table
	current  atomic.Pointer[listing]
	listing  chan struct{} // holds a token while somebody asks the source for points
	files    fileCache
	apps     appCache
	prefetch prefetch

	histories histories

	mu        sync.Mutex // for the two below
	open      []*point   // in the order they were opened
	slots     []*slot
	slotIndex sync.Map // slotKey → *slot; written under mu
}

// maxWrite is the largest read the kernel may ask for.
const maxWrite = 1 << 20

func newServer(source Source, options Options) *Server {
	if options.Deadline <= 0 {
		options.Deadline = 30 * time.Second
	}
	s := &Server{
		source:   source,
		options:  options,
		mounted:  time.Now(),
		now:      time.Now,
		openTree: tree.Open,
		wrap:     func(r fuse.RawFileSystem) fuse.RawFileSystem { return r },
		listing:  make(chan struct{}, 1),
	}
	s.table = newTable(&top{s})
	return s
}

// Mount shows the source's restore points in the directory dir, which must
// exist. It needs root. What a killed server left mounted there is detached
// first. The mount stays until Unmount, or until somebody else unmounts it.
func Mount(ctx context.Context, dir string, source Source, options Options) (*Server, error) {
	return newServer(source, options).mount(ctx, dir)
}

func (s *Server) mount(ctx context.Context, dir string) (*Server, error) {
	if err := detachStale(dir); err != nil {
		return nil, err
	}
	r := &raw{fuse.NewDefaultRawFileSystem(), s}
	device, err := openDevice(dir, s.options, s.wrap(r), s.report)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	device.after = func(id uint64, buffer []byte) {
		for _, f := range s.prefetch.after(id) {
			r.store(device, buffer, f)
		}
	}
	s.device, s.dir = device, dir
	device.start() // ends when the mount does; Wait waits for it
	if err := setReadAhead(dir, maxWrite); err != nil {
		s.report(fmt.Errorf("large files will be read slower than they could: %w", err))
	}
	return s, ctx.Err()
}

// protocolOptions are what go-fuse negotiates with the kernel.
func protocolOptions(o Options, report func(error)) *fuse.MountOptions {
	return &fuse.MountOptions{
		MaxWrite:             maxWrite, // largest read as well
		MaxBackground:        64,
		EnableSymlinkCaching: true,
		ExtraCapabilities:    fuse.CAP_NO_OPENDIR_SUPPORT,
		Debug:                o.Debug,
		Logger:               log.New(reportWriter{report}, "", 0),
	}
}

// reportWriter passes on what go-fuse logs.
type reportWriter struct{ report func(error) }

func (w reportWriter) Write(p []byte) (int, error) {
	w.report(fmt.Errorf("go-fuse: %s", p))
	return len(p), nil
}

func (s *Server) report(err error) {
	if s.options.Report != nil && err != nil {
		s.options.Report(err)
	}
}

// Wait returns when the mount is gone.
func (s *Server) Wait() { s.device.wait() }
