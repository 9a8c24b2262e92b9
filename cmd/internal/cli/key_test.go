package cli

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"cairn/chunkstore/seal"
)

// keyed is a host with a repository and secrets in files of their own.
type keyed struct {
	*host
	dir      string
	recovery string
}

// newKeyed makes a repository with a key of kind all, in the file that the
// environment names, and a recovery key.
func newKeyed(t *testing.T) *keyed {
	t.Helper()
	h := &keyed{host: newHost(t), dir: t.TempDir()}
	var made struct {
		Recovery string `json:"recovery_key"`
	}
	h.decode(&made, "init", "--json")
	h.recovery = made.Recovery
	return h
}

func (h *keyed) decode(v any, argv ...string) {
	h.t.Helper()
	out, _ := h.must(exitOK, argv...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
}

// secretFile writes a secret to a file that only its owner can read.
func (h *keyed) secretFile(name, secret string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// sshFiles makes an SSH key pair as ssh-keygen does.
func (h *keyed) sshFiles() (private, public string) {
	h.t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		h.t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		h.t.Fatal(err)
	}
	private = h.secretFile("id_ed25519", strings.TrimSpace(string(pem.EncodeToMemory(block))))
	return private, h.secretFile("id_ed25519.pub", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(line)))+" me@here")
}

// list gives the keys by ID.
func (h *keyed) list(argv ...string) map[string]keyJSON {
	h.t.Helper()
	var got struct {
		Keys []keyJSON `json:"keys"`
	}
	h.decode(&got, append([]string{"key", "ls", "--json"}, argv...)...)
	out := map[string]keyJSON{}
	for _, k := range got.Keys {
		out[k.ID] = k
	}
	return out
}

// add adds a key and gives its ID.
func (h *keyed) add(argv ...string) string {
	h.t.Helper()
	var got struct {
		ID string `json:"id"`
	}
	h.decode(&got, append([]string{"key", "add", "--json"}, argv...)...)
	return got.ID
}

// Goal: what each kind of key can do, and how the rest fails: exit code 12, and
// words that say which kind is needed. Method: every command that opens a
// repository, with a key of each kind.
func TestEveryCommandWithEveryKindOfKey(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners of files")
	}
	h := newKeyed(t)
	files := map[seal.Kind]string{}
	for _, kind := range seal.Kinds() {
		files[kind] = filepath.Join(h.dir, string(kind))
		h.add("--kind", string(kind), "--generate", files[kind])
	}
	img := sampleImage(t)
	h.addPoint(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	h.addPoint(img, time.Date(2026, 10, 13, 2, 0, 0, 0, time.UTC))
	h.must(exitOK, "catalogue", "--all")
	h.addPoint(img, time.Date(2026, 10, 14, 2, 0, 0, 0, time.UTC)) // without a catalogue
	h.must(exitOK, "vm", "add", "web01", "--qmp", "/nonexistent")

	const (
		reads   = "cannot read guest data; that needs one of kind restore or all"
		backsUp = "makes no backups; that needs one of kind write or all"
		manages = "does not add, replace or remove keys; that needs one of kind all"
	)
	const notRun = -1
	n := 0
	for _, c := range []struct {
		argv  []string
		code  int    // with a key that may
		needs string // what a key that may not is told; "": every kind may
	}{
		{[]string{"points"}, exitOK, ""},
		{[]string{"show", "web01@latest"}, exitOK, ""},
		{[]string{"check"}, exitOK, ""},
		{[]string{"check", "--read-data"}, exitOK, ""},
		{[]string{"repair", "index"}, exitOK, ""},
		{[]string{"catalogue"}, exitOK, ""},
		{[]string{"key", "ls"}, exitOK, ""},
		{[]string{"pin", "web01@2026-10-12"}, exitOK, ""},
		{[]string{"pin", "ls"}, exitOK, ""},
		{[]string{"unpin", "web01@2026-10-12"}, exitOK, ""},
		{[]string{"forget", "web01", "--keep-last", "9"}, exitOK, ""},
		// From catalogues, which lie under the structure key.
		{[]string{"find", "web01", "f03", "--point", "web01@2026-10-12"}, exitOK, ""},
		{[]string{"diff", "web01@2026-10-12", "web01@2026-10-13"}, exitOK, ""},

		{[]string{"find", "web01", "f03"}, exitOK, reads},
		{[]string{"log", "web01:/small/f03"}, exitOK, reads},
		{[]string{"diff", "web01"}, exitOK, reads},
		{[]string{"diff", "web01@2026-10-12", "web01@2026-10-13", "--compare"}, exitOK, reads},
		{[]string{"ls", "web01:/small"}, exitOK, reads},
		{[]string{"cat", "web01:/small/f03"}, exitOK, reads},
		{[]string{"cat", "web01:/small/"}, exitOK, reads},
		{[]string{"restore", "web01:/small/f03", "--to", "NEW"}, exitOK, reads},
		{[]string{"restore", "web01", "--disk", "vda", "--to", "NEW"}, exitOK, reads},
		{[]string{"restore", "web01", "--vm", "--to", "NEW"}, exitFailed, reads}, // nothing says how it was started
		{[]string{"restore", "web01:/small/f03", "--into", "web01", "--dry-run"}, exitFailed, reads},
		{[]string{"boot", "web01", "--dir", "NEW"}, notRun, reads}, // it would start this test as its mount
		{[]string{"mount", "/nonexistent", "--foreground"}, exitFailed, reads},
		{[]string{"catalogue", "web01@latest"}, exitOK, reads},
		{[]string{"apps", "web01@2026-10-12"}, exitOK, reads},
		{[]string{"backup", "web01"}, exitFailed, backsUp}, // it is not there
		{[]string{"key", "recovery"}, exitOK, manages},
		{[]string{"key", "add", "--kind", "write", "--generate", "NEW"}, exitOK, manages},
		{[]string{"key", "rm", "nothing"}, exitUsage, manages},
	} {
		may := map[string]string{reads: "restore all", backsUp: "write all", manages: "all", "": "write restore housekeeping all"}[c.needs]
		for _, kind := range seal.Kinds() {
			argv := []string{"--password-file", files[kind]}
			for _, arg := range c.argv {
				if arg == "NEW" {
					n++
					arg = filepath.Join(h.dir, "new", string(rune('a'+n%26))+string(rune('a'+n/26)))
					if err := os.MkdirAll(filepath.Dir(arg), 0o700); err != nil {
						t.Fatal(err)
					}
				}
				argv = append(argv, arg)
			}
			allowed := strings.Contains(" "+may+" ", " "+string(kind)+" ")
			if allowed && c.code == notRun {
				continue
			}
			code, out, errs := h.cairn(argv...)
			switch {
			case allowed && code != c.code:
				t.Errorf("%s key, %q: exit %d, want %d\n%s%s", kind, c.argv, code, c.code, out, errs)
			case !allowed && (code != exitWrongKey || !strings.Contains(errs, "a key of kind "+string(kind)+" "+c.needs)):
				t.Errorf("%s key, %q: exit %d, want %d and who may\n%s%s", kind, c.argv, code, exitWrongKey, out, errs)
			}
		}
	}
	h.must(exitOK, "forget", "web01@2026-10-13", "--password-file", files[seal.KindHousekeeping])
	// What a check does not look at it says.
	for _, kind := range seal.Kinds() {
		_, errs := h.must(exitOK, "check", "--read-data", "--password-file", files[kind])
		if got, want := strings.Contains(errs, "cannot open it"), kind == seal.KindWrite || kind == seal.KindHousekeeping; got != want {
			t.Errorf("check --read-data, %s key: %s", kind, errs)
		}
	}
}

func TestKeyLs(t *testing.T) {
	h := newKeyed(t)
	private, public := h.sshFiles()
	id := h.add("--kind", "restore", "--label", "the operator's", "--recipient-file", public)
	keys := h.list()
	if len(keys) != 3 {
		t.Fatalf("keys: %+v", keys)
	}
	if k := keys[id]; k.Kind != "restore" || k.Label != "the operator's" || k.Opens != "ssh-ed25519" || !strings.HasPrefix(k.Fingerprint, "SHA256:") || k.Created == nil || k.InUse || !k.Verified {
		t.Errorf("the SSH key: %+v", k)
	}
	h.must(exitOK, "points", "--password-file", private)
	// Nothing needs a secret for it, but then nothing is verified.
	t.Setenv("CAIRN_PASSWORD_FILE", "")
	for _, k := range h.list() {
		if k.Verified || k.InUse || k.Kind == "" {
			t.Errorf("without a secret: %+v", k)
		}
	}
	out, errs := h.must(exitOK, "key", "ls")
	if !strings.Contains(out, "the operator's") || !strings.Contains(out, "recovery key") || !strings.Contains(errs, "nothing of this was verified") {
		t.Errorf("key ls: %s%s", out, errs)
	}
}

// Whoever has the wrong secret is told what would open, and where to look.
func TestWrongKeyIsToldWhatOpens(t *testing.T) {
	h := newKeyed(t)
	h.add("--kind", "write", "--new-password-file", h.secretFile("right", "hunter2"))
	wrong := h.secretFile("wrong", "not hunter2")
	for _, argv := range [][]string{{"points"}, {"key", "recovery"}} {
		_, errs := h.must(exitWrongKey, append(argv, "--password-file", wrong)...)
		if !strings.Contains(errs, "3 keys (1 with a passphrase, 2 with an age identity)") || !strings.Contains(errs, "cairn key ls") {
			t.Errorf("%q: %s", argv, errs)
		}
	}
	if out, _ := h.must(exitWrongKey, "key", "ls", "--password-file", h.secretFile("other", "none of them")); !strings.Contains(out, "passphrase") {
		t.Errorf("key ls with a wrong key lists nothing: %s", out)
	}
}

func TestDoctorSaysWhatTheKeyIsFor(t *testing.T) {
	h := newKeyed(t)
	for kind, want := range map[string]string{"write": "cannot be read back", "restore": "no backups can be made", "housekeeping": "no backups can be made", "all": "a key of kind write is enough"} {
		file := filepath.Join(h.dir, kind)
		h.add("--kind", kind, "--generate", file)
		if _, out, errs := h.cairn("doctor", "--password-file", file); !strings.Contains(out+errs, "of kind "+kind) || !strings.Contains(out+errs, want) {
			t.Errorf("%s: %s%s", kind, out, errs)
		}
	}
}

// A place that changes what a key says of itself is found out by who has any
// key.
func TestKeyLsFindsChanges(t *testing.T) {
	h := newKeyed(t)
	id := h.add("--kind", "write", "--label", "web01", "--generate", filepath.Join(h.dir, "write"))
	path := filepath.Join(h.repo, "keys", id)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte("web01"), []byte("owner"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := h.must(exitDamage, "key", "ls"); !strings.Contains(out, "was changed in the place") {
		t.Errorf("key ls: %s", out)
	}
	h.must(exitOK, "points", "--password-file", filepath.Join(h.dir, "write")) // its keys are good
	if err := os.WriteFile(path, b[:50], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := h.must(exitDamage, "key", "ls"); !strings.Contains(out, "DAMAGED") || !strings.Contains(out, "recovery key") {
		t.Errorf("key ls: %s", out)
	}
	h.must(exitOK, "points")
}

func TestKeyAdd(t *testing.T) {
	h := newKeyed(t)
	private, public := h.sshFiles()
	age, recipient, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	generated := filepath.Join(h.dir, "generated")
	for _, c := range []struct{ argv, opens []string }{
		{[]string{"--new-password-file", h.secretFile("second", "hunter3")}, []string{h.secretFile("second", "hunter3")}},
		{[]string{"--recipient", recipient}, []string{h.secretFile("age", age), h.secretFile("as-age-keygen", "# created: now\n# public key: x\n"+age)}},
		{[]string{"--recipient-file", public}, []string{private}},
		{[]string{"--generate", generated}, []string{generated}},
	} {
		argv := append([]string{"--kind", "restore"}, c.argv...)
		h.add(argv...)
		for _, file := range c.opens {
			h.must(exitOK, "points", "--password-file", file)
		}
		if c.argv[0] != "--generate" { // a second slot for one secret would be a lottery
			if _, errs := h.must(exitUsage, append([]string{"key", "add"}, argv...)...); !strings.Contains(errs, "already") {
				t.Errorf("added twice: %s", errs)
			}
		}
	}
	if st, err := os.Stat(generated); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the generated file: %v, %v", st.Mode(), err)
	}
	before, _ := os.ReadFile(generated)
	n := len(h.list())
	for _, c := range []struct {
		code int
		argv []string
	}{
		{exitFailed, []string{"--kind", "write", "--generate", generated}}, // is there
		{exitUsage, []string{"--kind", "write"}},                           // no terminal
		{exitUsage, []string{"--generate", filepath.Join(h.dir, "x")}},     // no kind
		{exitUsage, []string{"--kind", "auditor", "--generate", filepath.Join(h.dir, "x")}},
		{exitUsage, []string{"--kind", "write", "--label", "a\nb", "--generate", filepath.Join(h.dir, "x")}},
		{exitUsage, []string{"--kind", "write", "--recipient", recipient, "--generate", filepath.Join(h.dir, "x")}},
		{exitWrongKey, []string{"--kind", "write", "--recipient", "age1nonsense"}},
		{exitWrongKey, []string{"--kind", "write", "--recipient", age}}, // the secret by mistake
		{exitFailed, []string{"--kind", "write", "--generate", "/nonexistent/x"}},
	} {
		if _, errs := h.must(c.code, append([]string{"key", "add"}, c.argv...)...); strings.Contains(errs, age) {
			t.Errorf("%q: the secret is echoed: %s", c.argv, errs)
		}
	}
	if after, _ := os.ReadFile(generated); !bytes.Equal(before, after) || len(h.list()) != n {
		t.Error("what failed left something")
	}
	if _, err := os.Lstat(filepath.Join(h.dir, "x")); err == nil {
		t.Error("what failed left a file")
	}
}

// A new passphrase takes the place of the old one, whatever the key's kind.
func TestKeyPasswd(t *testing.T) {
	h := newKeyed(t)
	for i, kind := range []string{"housekeeping", "all"} {
		old, fresh := h.secretFile("old-"+kind, "old secret "+kind), h.secretFile("new-"+kind, "new secret "+kind)
		id := h.add("--kind", kind, "--label", "label "+kind, "--new-password-file", old)
		h.must(exitOK, "points", "--password-file", old) // this host's kernel may remember it
		if _, errs := h.must(exitUsage, "key", "passwd", "--password-file", old, "--new-password-file", old); !strings.Contains(errs, "already") {
			t.Errorf("the same again: %s", errs)
		}
		out, _ := h.must(exitOK, "key", "passwd", "--password-file", old, "--new-password-file", fresh)
		if !strings.Contains(out, "takes the place of "+id) {
			t.Errorf("passwd: %s", out)
		}
		h.must(exitWrongKey, "points", "--password-file", old)
		h.must(exitOK, "points", "--password-file", fresh)
		found := 0
		for _, k := range h.list() {
			if k.Label == "label "+kind && k.Kind == kind && k.ID != id {
				found++
			}
		}
		if found != 1 || len(h.list()) != 3+i {
			t.Errorf("%s: keys %+v", kind, h.list())
		}
	}
	h.must(exitUsage, "key", "passwd")
}

func TestKeyRm(t *testing.T) {
	h := newKeyed(t)
	write := h.add("--kind", "write", "--generate", filepath.Join(h.dir, "write"))
	restore := h.add("--kind", "restore", "--generate", filepath.Join(h.dir, "restore"))
	var pass, recovery string
	for id, k := range h.list() {
		switch {
		case k.InUse:
			pass = id
		case k.Label == "recovery key":
			recovery = id
		}
	}
	h.must(exitUsage, "key", "rm", "zz")
	h.must(exitUsage, "key", "rm", "")
	_, errs := h.must(exitOK, "key", "rm", write[:6])
	if !strings.Contains(errs, "nothing was encrypted anew") {
		t.Errorf("rm does not say what it does not do: %s", errs)
	}
	h.must(exitWrongKey, "points", "--password-file", filepath.Join(h.dir, "write"))
	h.must(exitOK, "key", "rm", recovery)
	if _, errs := h.must(exitFailed, "key", "rm", pass); !strings.Contains(errs, "can add or remove keys") || !strings.Contains(errs, "--force") {
		t.Errorf("the last that can change keys: %s", errs)
	}
	h.must(exitOK, "key", "rm", restore)
	if _, errs := h.must(exitFailed, "key", "rm", pass); !strings.Contains(errs, "nothing here can be read again") {
		t.Errorf("the last that can restore: %s", errs)
	}
	h.must(exitOK, "points")
	h.must(exitOK, "key", "rm", pass, "--force")
	if code, _, errs := h.cairn("points"); code == exitOK {
		t.Errorf("without any key: exit %d, %s", code, errs)
	}
}

func TestKeyRecovery(t *testing.T) {
	h := newKeyed(t)
	var made struct {
		ID  string `json:"id"`
		Key string `json:"recovery_key"`
	}
	h.decode(&made, "key", "recovery", "--json")
	file := h.secretFile("recovery", made.Key)
	h.must(exitOK, "key", "rm", made.ID, "--password-file", h.secretFile("first", h.recovery)) // both are of kind all
	h.must(exitWrongKey, "points", "--password-file", file)
	out, errs := h.must(exitOK, "key", "recovery")
	if !strings.Contains(out, "AGE-SECRET-KEY-1") || !strings.Contains(errs, "cairn key rm") {
		t.Errorf("recovery: %s%s", out, errs)
	}
}

func TestKeysOfAnUnprotectedRepository(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init", "--no-encryption")
	for _, argv := range [][]string{{"ls"}, {"recovery"}, {"rm", "x"}, {"passwd"}, {"add", "--kind", "write", "--generate", filepath.Join(t.TempDir(), "x")}} {
		if _, errs := h.must(exitFailed, append([]string{"key"}, argv...)...); !strings.Contains(errs, "not encrypted") {
			t.Errorf("%q: %s", argv, errs)
		}
	}
	h.must(exitUsage, "key")
}

// Goal: no secret and no root of the repository is printed, or kept on the
// host. Method: run the commands with secrets of every form, good and bad; look
// for the secrets in what they print and in every file but the secrets' own.
func TestSecretsStayWhereTheyAre(t *testing.T) {
	h := newKeyed(t)
	private, public := h.sshFiles()
	const phrase, second, wrong = "canary-passphrase-9f2c", "canary-second-41aa", "canary-wrong-77d0"
	secrets := map[string]string{"a passphrase": phrase, "another passphrase": second, "a wrong one": wrong, "the recovery key": h.recovery}
	generated := filepath.Join(h.dir, "generated")
	h.add("--kind", "write", "--generate", generated)
	h.add("--kind", "restore", "--recipient-file", public)
	h.add("--kind", "all", "--new-password-file", h.secretFile("phrase", phrase))
	for name, file := range map[string]string{"a generated key": generated, "an SSH key": private, "the first key": os.Getenv("CAIRN_PASSWORD_FILE")} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		secrets[name] = string(b[len(b)/2 : len(b)/2+30])
	}
	h.secretFile("second", second)
	h.secretFile("wrong", wrong)
	half := h.secretFile("half", h.recovery[:40]+"broken")
	secrets["half a key"] = h.recovery[:40]
	torn := h.secretFile("torn", "-----BEGIN OPENSSH PRIVATE KEY-----\ncanarycanarycanary")
	secrets["a torn SSH key"] = "canarycanary"
	h.addPoint(sampleImage(t), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	h.must(exitOK, "vm", "add", "web01", "--qmp", "/nonexistent")
	for k, v := range roots(t, h) {
		secrets[k] = v
	}
	commands := [][]string{
		{"points"}, {"key", "ls"}, {"key", "add", "--kind", "write", "--new-password-file", half}, {"init", filepath.Join(h.dir, "NEW")},
		{"show", "web01"}, {"check", "--read-data"}, {"repair", "index"}, {"catalogue", "--all"}, {"find", "f03"}, {"log", "web01:/small/f03"},
		{"ls", "web01:/"}, {"apps", "web01"}, {"backup", "web01"}, {"doctor", "web01"}, {"mount", "/nonexistent", "--foreground"},
		{"restore", "web01:/small/f03", "--to", filepath.Join(h.dir, "NEW")}, {"key", "rm", "zz"},
		{"key", "add", "--kind", "write", "--new-password-file", torn}, {"key", "add", "--kind", "write", "--recipient", h.recovery},
		{"key", "add", "--kind", "write", "--recipient-file", private}, {"key", "passwd", "--new-password-file", filepath.Join(h.dir, "second")},
	}
	for i, file := range []string{generated, private, filepath.Join(h.dir, "wrong"), half, torn, filepath.Join(h.dir, "phrase"), filepath.Join(h.dir, "second")} {
		some := commands
		if i >= 2 && i < 5 || i == 6 { // they open nothing, or what was opened already
			some = commands[:4]
		}
		for j, command := range some {
			argv := []string{"--password-file", file}
			for _, arg := range command {
				argv = append(argv, strings.Replace(arg, "NEW", filepath.Base(file)+"-"+command[0], 1))
			}
			if (i+j)%2 == 1 {
				argv = append(argv, "--json")
			}
			code, out, errs := h.cairn(argv...)
			for name, secret := range secrets {
				if strings.Contains(out+errs, secret) {
					t.Errorf("%q (exit %d) prints %s:\n%s%s", argv, code, name, out, errs)
				}
			}
		}
	}
	for _, top := range []string{h.repo, h.dirs.Cache, h.dirs.State, h.dirs.Config} {
		lookForSecrets(t, top, secrets)
	}
}

// lookForSecrets reads every file below top.
func lookForSecrets(t *testing.T, top string, secrets map[string]string) {
	t.Helper()
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // not made by these commands
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for name, secret := range secrets {
			if bytes.Contains(b, []byte(secret)) || strings.Contains(path, secret) {
				t.Errorf("%s holds %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// roots gives the repository's roots as they would be written.
func roots(t *testing.T, h *keyed) map[string]string {
	t.Helper()
	slots, err := filepath.Glob(filepath.Join(h.repo, "keys", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slots {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		k, err := seal.OpenSlot(b, h.recovery)
		if err != nil {
			continue
		}
		var doc struct {
			ChunkID   string `json:"chunk_id_key"`
			Structure string `json:"structure_key"`
			Identity  string `json:"content_identity"`
		}
		if err := json.Unmarshal(k.Marshal(), &doc); err != nil {
			t.Fatal(err)
		}
		return map[string]string{"the chunk-ID key": doc.ChunkID, "the structure key": doc.Structure, "the content identity": doc.Identity,
			"the chunk-ID key itself": string(k.ChunkID[:]), "the structure key itself": string(k.Structure[:])}
	}
	t.Fatal("no slot opens with the recovery key")
	return nil
}
