package btrfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem/filesystemtest"
)

// logWork does random operations and syncs single files and directories all
// the time, so that the log tree has much to tell.
type logWork struct {
	rng         *rand.Rand
	dirs, files []string
	made        int
	data        []byte
}

func (s *logWork) sync(path string) {
	if f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err == nil {
		f.Sync()
		f.Close()
	}
}

func (s *logWork) dir() string { return s.dirs[s.rng.IntN(len(s.dirs))] }

func (s *logWork) fresh(kind string) string {
	s.made++
	return fmt.Sprintf("%s/%s%d%s", s.dir(), kind, s.made, strings.Repeat("y", s.rng.IntN(30)))
}

// reused is often a name that was used before.
func (s *logWork) reused() string { return fmt.Sprintf("%s/n%d", s.dir(), s.rng.IntN(12)) }

func (s *logWork) file() string {
	if len(s.files) == 0 {
		return s.reused()
	}
	return s.files[s.rng.IntN(len(s.files))]
}

func (s *logWork) write(path string, flags int, fn func(f *os.File)) {
	f, err := os.OpenFile(path, flags|os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return
	}
	fn(f)
	if s.rng.IntN(3) == 0 {
		f.Sync()
	}
	f.Close()
}

func (s *logWork) step() {
	r := s.rng
	switch k := r.IntN(100); {
	case k < 18:
		path := s.fresh("f")
		if r.IntN(2) == 0 {
			path = s.reused()
		}
		s.write(path, os.O_CREATE, func(f *os.File) { f.Write(s.data[:r.IntN(20000)]) })
		s.files = append(s.files, path)
	case k < 24:
		path := s.fresh("d")
		if r.IntN(2) == 0 {
			path = s.reused()
		}
		if os.Mkdir(path, 0o755) == nil {
			s.dirs = append(s.dirs, path)
		}
	case k < 32:
		os.Remove(s.file())
	case k < 34 && len(s.dirs) > 4:
		os.Remove(s.dir())
	case k < 44:
		from, to := s.file(), s.reused()
		if r.IntN(4) == 0 {
			from = s.dirs[1+r.IntN(len(s.dirs)-1)]
		}
		if os.Rename(from, to) == nil {
			s.files = append(s.files, to)
		}
	case k < 48:
		a, b := s.file(), s.file()
		unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	case k < 56:
		to := s.reused()
		if os.Link(s.file(), to) == nil {
			s.files = append(s.files, to)
		}
	case k < 63:
		s.write(s.file(), 0, func(f *os.File) { f.WriteAt(s.data[:r.IntN(9000)], r.Int64N(1<<19)) })
	case k < 67:
		s.write(s.file(), 0, func(f *os.File) { f.Truncate(r.Int64N(1 << 17)) })
	case k < 72:
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}[r.IntN(4)]
		s.write(s.file(), 0, func(f *os.File) { unix.Fallocate(int(f.Fd()), mode, r.Int64N(1<<18), r.Int64N(1<<17)+1) })
	case k < 77:
		unix.Lsetxattr(s.file(), fmt.Sprintf("user.k%d", r.IntN(4)), s.data[:r.IntN(300)], 0)
	case k < 80:
		unix.Lremovexattr(s.file(), fmt.Sprintf("user.k%d", r.IntN(4)))
	case k < 83:
		path := s.reused()
		if os.Symlink("to/"+path, path) == nil {
			s.files = append(s.files, path)
		}
	case k < 85:
		os.Chmod(s.file(), os.FileMode(r.IntN(0o777)))
	case k < 94:
		s.sync(s.file())
	default:
		s.sync(s.dir())
	}
}

// TestReplayStress holds the replay of many logs to the kernel's. CAIRN_LONG
// makes it long.
func TestReplayStress(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	rounds, copies := 1, 5
	if filesystemtest.Long() {
		rounds, copies = 12, 12
	}
	options := []struct {
		mount string
		mkfs  []string
	}{
		{"commit=300", nil},
		{"commit=300,max_inline=0", []string{"-n", "4096", "-O", "^no-holes"}},
		{"commit=300,compress-force=zstd", []string{"-n", "65536", "--csum", "xxhash"}},
		{"commit=300,nodatacow", []string{"-n", "8192"}},
	}
	host := hostDir(t)
	for round := range rounds {
		o := options[round%len(options)]
		image := filepath.Join(host, fmt.Sprintf("live%d", round))
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 256*mib); err != nil {
			t.Fatal(err)
		}
		filesystemtest.Run(t, append(append([]string{"mkfs.btrfs", "-q"}, o.mkfs...), image)...)
		dir, unmount := filesystemtest.LoopMount(t, image, o.mount)
		filesystemtest.Run(t, "btrfs", "subvolume", "create", dir+"/sub")
		s := &logWork{rng: rand.New(rand.NewPCG(uint64(round), 5)), dirs: []string{dir, dir + "/sub", dir + "/a"}, data: make([]byte, 20000)}
		os.Mkdir(dir+"/a", 0o755)
		for i := range s.data {
			s.data[i] = byte(s.rng.Uint32())
		}
		var made []string
		for i := range copies {
			for range 300 {
				s.step()
			}
			filesystemtest.Run(t, "sync", "-f", dir)
			for range 20 + s.rng.IntN(60) {
				s.step()
			}
			s.write(fmt.Sprintf("%s/last%d", dir, i), os.O_CREATE, func(f *os.File) { f.Sync() })
			s.sync(s.file())
			to := filepath.Join(host, fmt.Sprintf("copy%d-%d", round, i))
			filesystemtest.Run(t, "cp", "--reflink=always", image, to)
			made = append(made, to)
		}
		unmount()
		logs := 0
		for _, c := range made {
			fs := compareReplayed(t, c, 10)
			if fs.sb.logRoot.bytenr != 0 {
				logs++
			}
			if t.Failed() {
				filesystemtest.Run(t, "cp", "--sparse=always", c, "/var/tmp/bt/fail.img")
				t.Fatalf("%s", c)
			}
			os.Remove(c)
		}
		if logs < copies/3 {
			t.Errorf("only %d of %d copies had a log tree", logs, copies)
		}
	}
}
