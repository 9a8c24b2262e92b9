package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tree is a root folder that packages are installed into.
type tree struct {
	t    *testing.T
	root string
	dpkg []string // how dpkg is run on it
}

func (r *tree) path(name string) string { return filepath.Join(r.root, name) }

func (r *tree) write(name, text string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(r.path(name)), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.path(name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *tree) do(args ...string) string {
	r.t.Helper()
	return tool(r.t, append(r.dpkg, args...)...)
}

// has asks for files that are there, or with a "!" are not.
func (r *tree) has(when string, names ...string) {
	r.t.Helper()
	for _, name := range names {
		name, absent := strings.CutPrefix(name, "!")
		if _, err := os.Lstat(r.path(name)); (err != nil) != absent {
			r.t.Errorf("%s: %s: %v", when, name, err)
		}
	}
}

// lives installs a package, uses it, upgrades, removes and purges it. install
// gives the name of a version's file as dpkg sees it.
func (r *tree) lives(install func(version string) string) {
	t := r.t
	t.Helper()
	r.do("-i", install("1.0"))
	r.has("installed", "usr/bin/cairn", "etc/cairn/environment", "etc/cairn/vms.d", "var/lib/cairn", "var/cache/cairn", "!etc/systemd/system/timers.target.wants/cairn-gc.timer")
	for name, want := range map[string]os.FileMode{"etc/cairn": 0o700, "etc/cairn/vms.d": 0o700, "var/cache/cairn": 0o700, "var/lib/cairn": 0o711} {
		if st, err := os.Stat(r.path(name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", name, st.Mode(), err, want)
		}
	}
	const mine = "CAIRN_REPOSITORY=/srv/cairn\n"
	r.write("etc/cairn/environment", mine)
	r.write("etc/cairn/password", "secret\n")
	r.write("etc/cairn/vms.d/web01.toml", "name='web01'\n")
	r.write("var/lib/cairn/guardian.log", "x")
	r.write("var/cache/cairn/abc/index/MANIFEST", "x")
	r.write("srv/cairn/config", "a repository")
	r.write("srv/cairn/packs/00/aa", "a pack")

	r.do("-i", install("1.1"))
	if b, err := os.ReadFile(r.path("etc/cairn/environment")); err != nil || string(b) != mine {
		t.Errorf("the upgrade changed the conffile: %q, %v", b, err)
	}
	if got := r.do("-s", "cairn"); !strings.Contains(got, "Version: 1.1\n") || !strings.Contains(got, "Status: install ok installed") {
		t.Errorf("upgraded: %s", got)
	}
	r.do("-r", "cairn")
	r.has("removed", "!usr/bin/cairn", "!lib/systemd/system/cairn-gc.timer", "!usr/share/man/man1/cairn.1.gz", "etc/cairn/environment", "etc/cairn/vms.d/web01.toml", "var/lib/cairn/guardian.log", "srv/cairn/packs/00/aa")
	r.do("-P", "cairn")
	// The passphrase is the only way into the repository, which stays.
	r.has("purged", "!etc/cairn/environment", "!etc/cairn/vms.d", "!var/lib/cairn", "!var/cache/cairn", "etc/cairn/password", "srv/cairn/config", "srv/cairn/packs/00/aa")

	// Who has a repository among the state, or a VM that was booted from a point,
	// does not lose it either.
	for _, kept := range []string{"var/lib/cairn/repo/config", "var/lib/cairn/shard/place", "var/lib/cairn/boot/web01/vda.qcow2"} {
		r.do("-i", install("1.1"))
		r.write(kept, "x")
		if out := r.do("-P", "cairn"); !strings.Contains(out, "/var/lib/cairn is left") {
			t.Errorf("%s: purge does not say what it leaves: %s", kept, out)
		}
		r.has("purged", kept, "!usr/bin/cairn")
		if err := os.RemoveAll(r.path("var/lib/cairn")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(r.path("etc/cairn/password")); err != nil {
		t.Fatal(err)
	}
	r.do("-i", install("1.1"))
	r.do("-P", "cairn")
	r.has("purged without a password", "!etc/cairn", "!var/lib/cairn", "srv/cairn/config")
}

// The short leg: dpkg works on an empty folder, and so do the maintainer
// scripts, which it tells by DPKG_ROOT.
func TestInstallUpgradePurge(t *testing.T) {
	needs(t, "dpkg")
	if os.Geteuid() != 0 {
		t.Skip("dpkg --root needs root")
	}
	root := t.TempDir()
	tool(t, "install", "-d", filepath.Join(root, "var/lib/dpkg/updates"), filepath.Join(root, "var/lib/dpkg/info"), filepath.Join(root, "var/lib/dpkg/triggers"))
	for _, name := range []string{"status", "available"} {
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := &tree{t: t, root: root, dpkg: []string{"dpkg", "--root=" + root, "--force-script-chrootless", "--force-confold", "--force-unsafe-io", "--log=/dev/null"}}
	files := map[string]string{"1.0": version1(t, "host"), "1.1": pack(t, "host", "1.1")}
	r.lives(func(version string) string { return files[version] })
}

// cleanPackages are in the clean Debian beside debootstrap's minbase: what
// judges the package.
const cleanPackages = "systemd,man-db,mandoc,zsh,fish,bash-completion,groff"

// clean gives a copy of a clean Debian, made by debootstrap once and kept.
func clean(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("CAIRN_LAB_CACHE")
	if cache == "" {
		cache = "/var/cache/cairn-lab"
	}
	final := filepath.Join(cache, "clean-bookworm-1")
	if _, err := os.Stat(final); err != nil {
		work, err := os.MkdirTemp(cache, "building-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(work) })
		args := []string{"--variant=minbase", "--include=" + cleanPackages, "bookworm", filepath.Join(work, "root")}
		if mirror := os.Getenv("CAIRN_LAB_MIRROR"); mirror != "" {
			args = append(args, mirror)
		}
		if out, err := exec.CommandContext(t.Context(), "debootstrap", args...).CombinedOutput(); err != nil {
			t.Skipf("debootstrap: %v: %.500s", err, out)
		}
		if err := os.Rename(filepath.Join(work, "root"), final); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	tool(t, "cp", "-a", "--reflink=auto", final, root)
	return root
}

// The long leg: a clean Debian, with its own dpkg, systemd, man and shells.
func TestCleanDebian(t *testing.T) {
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("makes a clean Debian, 2 minutes and 150 MB the first time; with CAIRN_LONG=1")
	}
	needs(t, "debootstrap", "chroot")
	if os.Geteuid() != 0 {
		t.Skip("debootstrap needs root")
	}
	root := clean(t)
	in := func(command string) string {
		t.Helper()
		// The mount goes with its namespace.
		return tool(t, "unshare", "--mount", "--propagation=private", "chroot", root, "/bin/sh", "-c", "mount -t proc proc /proc; "+command)
	}
	r := &tree{t: t, root: root, dpkg: []string{"chroot", root, "dpkg", "--force-confold"}}
	for version, file := range map[string]string{"1.0": version1(t, "host"), "1.1": pack(t, "host", "1.1")} {
		tool(t, "cp", file, r.path("tmp/cairn_"+version+".deb"))
	}
	if out := in("dpkg -i /tmp/cairn_1.0.deb && cairn version"); !strings.Contains(out, "cairn unknown (commit") {
		t.Errorf("the program: %s", out)
	}
	for name, command := range map[string]string{
		"units":   "systemd-analyze verify --man=no --recursive-errors=no cairn-backup@web01.service cairn-backup@web01.timer cairn-check.timer cairn-gc.timer cairn-check.service cairn-gc.service cairn.service cairn-once.service cairn-once.timer",
		"pages":   "for p in $(dpkg -L cairn | grep 'man[17]/.*gz$'); do LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l $p >/dev/null || echo $p; done",
		"lint":    "for p in $(dpkg -L cairn | grep 'man[17]/.*gz$'); do zcat $p | mandoc -Tlint -Wwarning || echo $p; done",
		"md5sums": "dpkg -V cairn",
	} {
		if out := in(command + " 2>&1"); strings.TrimSpace(out) != "" {
			t.Errorf("%s: %.2000s", name, out)
		}
	}
	for shell, command := range map[string]string{
		"bash": `bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader cairn; COMP_WORDS=(cairn back) COMP_CWORD=1 COMP_LINE="cairn back" COMP_POINT=10; $(complete -p cairn | sed "s/.*-F \([^ ]*\).*/\1/") cairn back cairn; echo "${COMPREPLY[@]}"'`,
		// What the function would describe to the user, without a terminal.
		"zsh":  `zsh -fc 'autoload -Uz compinit; compinit -u -d /tmp/zcomp; autoload -Uz +X $_comps[cairn]; _describe() { print -rl -- "${completions[@]}"; }; words=(cairn back) CURRENT=2; _cairn'`,
		"fish": `fish -c 'complete -C "cairn back"'`,
	} {
		if out := in("export HOME=/root TERM=dumb; " + command + " 2>/dev/null || true"); !strings.Contains(out, "backup") {
			t.Errorf("%s does not complete: %s", shell, out)
		} else {
			t.Logf("%s: %s", shell, out)
		}
	}
	// An administrator's enabled timers do not outlive a purge.
	in("systemctl enable cairn-backup@web01.timer cairn-gc.timer")
	r.has("enabled", "etc/systemd/system/timers.target.wants/cairn-backup@web01.timer")
	in("dpkg -P cairn")
	r.has("purged", "!etc/systemd/system/timers.target.wants/cairn-backup@web01.timer", "!etc/systemd/system/timers.target.wants/cairn-gc.timer")
	r.lives(func(version string) string { return "/tmp/cairn_" + version + ".deb" })
}
