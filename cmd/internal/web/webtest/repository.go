package webtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/wire"
	"cairn/guest/object"
	"cairn/index/restorepoint"
)

// Names of files that are not what they seem.
const (
	Script  = `<script>alert(1)</script>`
	Escape  = "\x1b[2Jevil"
	Latin   = "caf\xe9.txt"
	Bidi    = "gnp\u202etxt.exe"
	Quotes  = `"; filename="x.html`
	Unicode = "Größe 日本語.txt"
)

// Damaged is the path of a file of 2 MiB of which a block does not exist, Cleared of one whose inode is gone.
const (
	Damaged = "/srv/damaged.bin"
	Cleared = "/srv/cleared.txt"
)

// Repository is a real repository in a folder.
type Repository struct {
	Dirs   config.Dirs
	Config config.Repository
	image  string
	last   map[string]string // newest point by VM
	repo   *wire.Repo
	cat    *wire.Catalogue
	root   restorepoint.MapRoot
	size   int64
}

// NewRepository makes a repository without encryption in dir. It needs mke2fs and
// debugfs; Close ends it. The guest has a folder with so many files.
func NewRepository(ctx context.Context, dir, name string, many int) (*Repository, error) {
	return newRepository(ctx, named(dir, name), dir, many, nil)
}

// NewEncryptedRepository is NewRepository with a key that may do everything, in
// Config.KeyFile.
func NewEncryptedRepository(ctx context.Context, dir, name string, many int) (*Repository, error) {
	r := named(dir, name)
	secret, _, err := seal.NewIdentity() // no passphrase: its derivation takes seconds
	if err != nil {
		return nil, err
	}
	r.Config.KeyFile = filepath.Join(dir, name+".key")
	if err := os.WriteFile(r.Config.KeyFile, []byte(secret+"\n"), 0o600); err != nil {
		return nil, err
	}
	return newRepository(ctx, r, dir, many, []string{secret})
}

func newRepository(ctx context.Context, r *Repository, dir string, many int, secrets []string) (*Repository, error) {
	if _, err := wire.InitRepo(ctx, r.Config.Address, chunkstore.InitOptions{Now: time.Now, Secrets: secrets}); err != nil {
		return nil, err
	}
	if err := makeImage(filepath.Join(dir, "guest"), r.image, many); err != nil {
		return nil, err
	}
	return r, r.open(ctx)
}

// OpenRepository opens what NewRepository made.
func OpenRepository(ctx context.Context, dir, name string) (*Repository, error) {
	r := named(dir, name)
	return r, r.open(ctx)
}

func named(dir, name string) *Repository {
	return &Repository{Dirs: config.Dirs{Config: filepath.Join(dir, "etc"), Cache: filepath.Join(dir, "cache"), State: filepath.Join(dir, "state")},
		Config: config.Repository{Name: name, Address: filepath.Join(dir, name)}, image: filepath.Join(dir, name+".img"), last: map[string]string{}}
}

func (r *Repository) open(ctx context.Context) (err error) {
	if r.repo, err = wire.OpenRepo(ctx, r.Config.Address, wire.Secret{File: r.Config.KeyFile}, r.Dirs); err != nil {
		return err
	}
	r.cat = r.repo.NewCatalogue(ctx, 8<<20)
	return nil
}

// Count is how many points there are.
func (r *Repository) Count(ctx context.Context) (int, error) {
	points, err := r.cat.Points(ctx)
	return len(points), err
}

// Close closes the repository, which stays on disk.
func (r *Repository) Close() error {
	r.cat.Close()
	return r.repo.Close()
}

// ID is the repository's own.
func (r *Repository) ID() string { return r.repo.Store.Config.ID }

// files are the guest's.
func files() map[string]string {
	return map[string]string{
		"etc/os-release":                      "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n",
		"etc/hostname":                        "web01\n",
		"etc/fstab":                           "/dev/vda / ext4 defaults 0 1\n",
		"etc/passwd":                          "root:x:0:0:root:/root:/bin/bash\nanna:x:1000:1000:Anna:/home/anna:/bin/bash\n",
		"etc/group":                           "root:x:0:\nanna:x:1000:\n",
		"etc/app.conf":                        "version = 0\n",
		"etc/redis/redis.conf":                "dir /var/lib/redis\n",
		"var/lib/redis/dump.rdb":              "REDIS0010",
		"home/anna/letter.txt":                "dear reader,\n",
		"srv/projects/thesis.txt":             strings.Repeat("three years of work\n", 2000),
		"srv/odd/" + Script:                   "x",
		"srv/odd/" + Escape:                   "x",
		"srv/odd/" + Latin:                    "latin 1",
		"srv/odd/" + Bidi:                     "x",
		"srv/odd/" + Quotes:                   "x",
		"srv/odd/" + Unicode:                  "x",
		"srv/odd/page.html":                   "<script>alert(document.cookie)</script>",
		"srv/odd/" + strings.Repeat("n", 250): "a long name",
		"srv/damaged.bin":                     strings.Repeat("0123456789abcdef", 2<<20/16),
		"srv/cleared.txt":                     "gone",
	}
}

// makeImage makes an ext4 image with files, links, a sparse file, and damage.
func makeImage(dir, image string, many int) error {
	for name, text := range files() {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for i := range many {
		name := filepath.Join(dir, "var/spool/many", fmt.Sprintf("message-%04d.eml", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"etc/out": "/../../../../etc/passwd", "srv/loop": "loop", "srv/up": "../../../..", "latest": "srv/projects"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.Link(filepath.Join(dir, "srv/projects/thesis.txt"), filepath.Join(dir, "srv/projects/copy.txt")); err != nil {
		return err
	}
	sparse := filepath.Join(dir, "srv/sparse.img")
	if err := os.WriteFile(sparse, []byte("begin"), 0o644); err != nil {
		return err
	}
	if err := os.Truncate(sparse, 1<<30); err != nil {
		return err
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, 24<<20); err != nil {
		return err
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^has_journal,^extent,^64bit,^flex_bg,^huge_file", "-d", dir, image).CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return debugfs(image, "cd srv", "mknod pipe p", "cd /", "set_inode_field srv/damaged.bin block[5] 4000000000", "clri srv/cleared.txt")
}

func debugfs(image string, commands ...string) error {
	script := image + ".script"
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	if out, err := exec.Command("debugfs", "-w", "-f", script, image).CombinedOutput(); err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, out)
	}
	return nil
}

// Write puts a file into the guest; what was there goes.
func (r *Repository) Write(name, contents string, mtime time.Time) error {
	from := r.image + ".from"
	if err := os.WriteFile(from, []byte(contents), 0o644); err != nil {
		return err
	}
	return debugfs(r.image, "rm "+name, "write "+from+" "+name, "set_inode_field "+name+" mtime "+mtime.UTC().Format("20060102150405"))
}

// Remove removes a file of the guest.
func (r *Repository) Remove(name string) error { return debugfs(r.image, "rm "+name) }

type nothing struct{}

func (nothing) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (nothing) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// Point stores the image as a point of a VM, as a backup would, with the list of
// its files, and gives its ID. same: the image is as it was at the last Point, and
// nothing of it is stored.
func (r *Repository) Point(ctx context.Context, vm string, at time.Time, same, list bool, change func(*restorepoint.Manifest)) (string, error) {
	s, err := r.repo.Store.Begin(ctx, nothing{}, nil)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if !same || r.size == 0 {
		if err := r.store(ctx, s); err != nil {
			return "", err
		}
	}
	m := restorepoint.Manifest{
		Version: 1, ID: s.ID().String(), VM: restorepoint.VM{Name: vm, UUID: "6f8a1c52-0000-4000-8000-000000000001"}, Time: at.UTC(), Host: "host1", Parent: r.last[vm],
		Read: restorepoint.ReadIncremental, Reason: "vda: incremental: bitmap cairn-b3f94e59 recorded all changes since the last point",
		Pace:        "1.4 s, of which reading the disks took 1.0 s (802 MiB/s)",
		Consistency: restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem, Reason: "the filesystems were frozen; no application was told"},
		Disks: []restorepoint.Disk{{Name: "vda", Node: "disk0", Device: "/machine/peripheral/vda", Size: r.size, Format: "qcow2", Read: restorepoint.ReadIncremental,
			Reason: "incremental: the bitmap recorded all changes", MapRoot: r.root}},
		Machine:    restorepoint.Machine{QEMUVersion: "7.2.22"},
		Statistics: restorepoint.Statistics{BytesDisk: r.size, BytesDirty: 3 << 20, BytesRead: 3 << 20, BytesStored: 2 << 20, ChunksNew: 786, ChunksKnown: 41, ChunksZero: 12, ChunksAudited: 509, FrozenMS: 130, PausedUS: 4800, DurationMS: 1400},
	}
	if r.last[vm] == "" {
		m.Read, m.Reason = restorepoint.ReadFull, "vda: full read: the repository has no earlier point of this disk"
		m.Disks[0].Read = restorepoint.ReadFull
	}
	if change != nil {
		change(&m)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	if err := s.Commit(ctx, body); err != nil {
		return "", err
	}
	r.last[vm] = m.ID
	if list {
		if _, _, err := r.cat.Make(ctx, &m, wire.MakeOptions{}); err != nil {
			return "", err
		}
	}
	return m.ID, nil
}

// store stores the image.
func (r *Repository) store(ctx context.Context, s *chunkstore.Session) error {
	img, err := os.ReadFile(r.image)
	if err != nil {
		return err
	}
	b, err := restorepoint.NewBuilder(ctx, s, nil, int64(len(img)))
	if err != nil {
		return err
	}
	for off := 0; off < len(img); off += chunkstore.BatchSize {
		buf, err := s.Buffer(ctx)
		if err != nil {
			return err
		}
		n := copy(buf, img[off:])
		end := (n + chunk.Size - 1) / chunk.Size * chunk.Size
		clear(buf[n:end])
		first := int64(off / chunk.Size)
		if err := s.Append(ctx, &chunkstore.Batch{Data: buf[:end], Placed: func(l []chunk.Loc) error { return b.Set(first, l) }}); err != nil {
			return err
		}
	}
	if err := s.Flush(ctx); err != nil {
		return err
	}
	if err := b.Finish(); err != nil {
		return err
	}
	if err := s.FlushRecords(ctx); err != nil {
		return err
	}
	r.root, r.size = b.Root(), int64(len(img))
	return nil
}

// Told gives a manifest what an inside agent says of its guest.
func Told(m *restorepoint.Manifest) {
	d := &object.Document{Version: object.Version, Source: object.SourceAgent, Agent: "1.0", Taken: m.Time, Hostname: m.VM.Name,
		OS: object.OS{ID: "debian", Name: "Debian GNU/Linux 12 (bookworm)", KernelRelease: "6.1.0-18-amd64"},
		Objects: []object.Object{
			{Name: "postgresql@15-main", Kind: "postgresql", Version: "15.6", State: "running", Service: "postgresql@15-main.service", Title: "PostgreSQL 15, cluster main",
				Paths:       []object.Path{{Role: "data", Path: "/var/lib/postgresql/15/main", Size: 40 << 20}, {Role: "config", Path: "/etc"}},
				Consistency: object.Consistency{Level: object.Application, Reason: "pg_backup_start was called before the instant and pg_backup_stop behind it"}},
			{Name: "redis", Kind: "redis", Version: "7.0.15", State: "running", Paths: []object.Path{{Role: "data", Path: "/var/lib/redis"}},
				Consistency: object.Consistency{Level: object.Application, Reason: "BGSAVE ended before the instant"}},
			{Name: "users/anna", Kind: "user", Paths: []object.Path{{Role: "home", Path: "/home/anna"}}, Consistency: object.Consistency{Level: object.Filesystem, Reason: "the filesystems were frozen"}},
		}}
	body, err := object.Encode(d)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	m.Guest = &restorepoint.Guest{Source: "cairn-agent", Hostname: m.VM.Name, OS: restorepoint.OS{ID: "debian", Name: d.OS.Name, KernelRelease: d.OS.KernelRelease},
		Filesystems: []restorepoint.Mount{{Mountpoint: "/", Name: "vda", Type: "ext4", UsedBytes: 11 << 20, TotalBytes: 24 << 20}}, Metadata: body, MetadataDigest: object.Digest(body)}
	m.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyApplication, Reason: "postgresql@15-main and redis were told; 1 filesystem frozen"}
}
