package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
)

var update = flag.Bool("update", false, "make the frozen slots anew (only before their version was ever released)")

var slotTime = time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC)

const slotName = "keys/0123456789abcdef"

func newKeyring(t testing.TB) *Keyring {
	t.Helper()
	k, err := NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sshKey makes an OpenSSH private key file and its public line.
func sshKey(t testing.TB, passphrase string) (private, public string) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "a test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "a test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(line))) + " somebody@host"
}

func recipientOf(t testing.TB, secret string) Recipient {
	t.Helper()
	r, err := For(secret)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A slot opens with its secret, with no other, and shows nothing of the keys;
// what it says of itself is believed only as it was written.
func TestSlots(t *testing.T) {
	k := newKeyring(t)
	plain, _, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	private, public := sshKey(t, "")
	for name, c := range map[string]struct {
		secret string
		public string // the recipient as others know it
		method Method
	}{
		"passphrase":  {"a passphrase", "", MethodPassphrase},
		"age":         {plain, mustIdentity(t, plain), MethodAge},
		"age, hybrid": {hybrid.String(), hybrid.Recipient().String(), MethodAge},
		"ssh":         {private, public, MethodSSH},
	} {
		t.Run(name, func(t *testing.T) {
			to := []Recipient{recipientOf(t, c.secret)}
			if c.public != "" {
				r, err := ParseRecipient(c.public)
				if err != nil || r.Fingerprint() != to[0].Fingerprint() || r.Fingerprint() == "" {
					t.Fatalf("recipient %q and %q, %v", r.Fingerprint(), to[0].Fingerprint(), err)
				}
				to = append(to, r)
			}
			for _, to := range to {
				slot, err := k.NewSlot(slotName, KindAll, "day to day", to, slotTime)
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(slot, k.ChunkID[:]) || bytes.Contains(slot, []byte("identity")) || c.public != "" && bytes.Contains(slot, []byte(c.public)) {
					t.Error("the slot shows what it holds, or for whom")
				}
				s, err := ParseSlot(slot)
				if err != nil {
					t.Fatal(err)
				}
				if want := (Info{KindAll, "day to day", c.method, to.Fingerprint(), slotTime}); s.Info != want || s.Bare {
					t.Errorf("info %+v, want %+v", s.Info, want)
				}
				got, err := s.Open(c.secret)
				if err != nil || got.ChunkID != k.ChunkID || got.Structure != k.Structure || got.Kind() != KindAll {
					t.Fatalf("open: %v", err)
				}
				if err := s.Check(slotName, got); err != nil {
					t.Error(err)
				}
				if err := s.Check("keys/another", got); !errors.Is(err, ErrSlotInfo) {
					t.Errorf("under another name: %v", err)
				}
				for _, wrong := range []string{"another", "AGE-SECRET-KEY-1NONSENSE", "AGE-SECRET-KEY-PQ-1NONSENSE", sshPrefix + "\nNONSENSE\n"} {
					if _, err := s.Open(wrong); !errors.Is(err, ErrWrongSecret) && !errors.Is(err, ErrSecret) || strings.Contains(err.Error(), "NONSENSE") {
						t.Errorf("secret %q: %v", wrong, err)
					}
				}
			}
		})
	}
	if _, err := For(""); !errors.Is(err, ErrSecret) {
		t.Errorf("an empty passphrase: %v", err)
	}
}

func mustIdentity(t testing.TB, secret string) string {
	t.Helper()
	id, err := age.ParseX25519Identity(secret)
	if err != nil {
		t.Fatal(err)
	}
	return id.Recipient().String()
}

// Each kind of slot holds the roots of its kind and no others, and says by a
// typed error what it cannot do.
func TestKinds(t *testing.T) {
	k := newKeyring(t)
	secret, _, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := k.WrapPackKey(RandomKey())
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[Kind]struct{ chunkID, read, wrap, backUp, manage bool }{
		KindAll:          {true, true, true, true, true},
		KindRestore:      {true, true, true, false, false},
		KindWrite:        {true, false, true, true, false},
		KindHousekeeping: {false, false, false, false, false},
	} {
		slot, err := k.NewSlot(slotName, kind, "", recipientOf(t, secret), slotTime)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenSlot(slot, secret)
		if err != nil {
			t.Fatal(err)
		}
		if got.Kind() != kind || got.Structure != k.Structure {
			t.Errorf("%s opens as %s", kind, got.Kind())
		}
		if (got.ChunkID == k.ChunkID) != want.chunkID || got.HasChunkID() != want.chunkID || !want.chunkID && got.ChunkID != (Key{}) {
			t.Errorf("%s: chunk-ID key", kind)
		}
		_, unwrap := got.UnwrapPackKey(wrapped)
		_, wrap := got.WrapPackKey(RandomKey())
		for what, c := range map[string]struct {
			err, is error
			may     bool
		}{
			"unwrap":  {unwrap, ErrNoContentKey, want.read},
			"read":    {got.MayRead(), ErrNoContentKey, want.read},
			"wrap":    {wrap, ErrNoBackupKey, want.wrap},
			"back up": {got.MayBackUp(), ErrNoBackupKey, want.backUp},
			"manage":  {got.MayManage(), ErrNoManageKey, want.manage},
		} {
			if c.may && c.err == nil {
				continue
			}
			var typed *KindError
			if c.may || !errors.Is(c.err, c.is) || !errors.Is(c.err, ErrKind) || !errors.As(c.err, &typed) || typed.Have != kind || !strings.Contains(c.err.Error(), "kind "+string(kind)) {
				t.Errorf("%s, %s: %v", kind, what, c.err)
			}
		}
		if !want.read && bytes.Contains(got.Marshal(), []byte("AGE-SECRET-KEY")) {
			t.Errorf("%s holds the content identity", kind)
		}
		// What a key does not have it cannot give on.
		for _, more := range Kinds() {
			_, err := got.Only(more)
			lacks := more == KindWrite && !want.wrap || (more == KindAll || more == KindRestore) && !want.read
			if (err != nil) != lacks || lacks && !errors.Is(err, ErrKind) {
				t.Errorf("%s of %s: %v", more, kind, err)
			}
		}
	}
}

// A slot document that does not hold what its kind needs, or more, is refused.
func TestKindsAreHeldAgainstWhatIsThere(t *testing.T) {
	k := newKeyring(t)
	all := string(k.Marshal())
	for _, kind := range []Kind{KindWrite, KindHousekeeping, "auditor"} {
		doc := strings.Replace(all, `"kind":"all"`, `"kind":"`+string(kind)+`"`, 1)
		if _, err := Unmarshal([]byte(doc)); err == nil || strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("a document of all keys that says %s: %v", kind, err)
		}
	}
	// Before there were kinds, what was there decided.
	old := strings.Replace(all, `"kind":"all",`, "", 1)
	if got, err := Unmarshal([]byte(old)); err != nil || got.Kind() != KindAll {
		t.Errorf("an old document: %v", err)
	}
	old = old[:strings.Index(old, `,"content_identity"`)] + "}"
	if got, err := Unmarshal([]byte(old)); err != nil || got.Kind() != KindWrite {
		t.Errorf("an old document without the identity: %v", err)
	}
}

// A slot of before there was an info is an age file by itself.
func TestBareSlots(t *testing.T) {
	k := newKeyring(t)
	for secret, method := range map[string]Method{"a passphrase": MethodPassphrase, mustNew(t): MethodAge} {
		b, err := encrypt(k.Marshal(), recipientOf(t, secret).to)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseSlot(b)
		if err != nil || !s.Bare || s.Info.Opens != method {
			t.Fatalf("%+v, %v", s, err)
		}
		if got, err := s.Open(secret); err != nil || got.Structure != k.Structure || s.Check(slotName, got) != nil {
			t.Errorf("open: %v", err)
		}
	}
}

func mustNew(t testing.TB) string {
	t.Helper()
	secret, err := NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Each byte of a slot that is flipped is noticed; in front of the age file it
// does not cost the keys, unless the slot's form is lost with it.
func TestSlotDamage(t *testing.T) {
	k := newKeyring(t)
	secret := mustNew(t)
	good, err := k.NewSlot(slotName, KindWrite, "host web01", recipientOf(t, secret), slotTime)
	if err != nil {
		t.Fatal(err)
	}
	file := bytes.Index(good, []byte(bareMagic))
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 1
		s, err := ParseSlot(b)
		if err != nil {
			continue
		}
		if err := s.Check(slotName, k); !errors.Is(err, ErrSlotInfo) && i != 9 && i != 10 && i != 11 {
			t.Fatalf("byte %d: %v", i, err)
		}
		if i < slotHeader-4 || i >= slotHeader && i < file {
			if got, err := s.Open(secret); err != nil || got.Kind() != KindWrite {
				t.Errorf("byte %d of the info costs the keys: %v", i, err)
			}
		}
	}
}

func TestSlotLimits(t *testing.T) {
	k := newKeyring(t)
	to := recipientOf(t, mustNew(t))
	for _, label := range []string{strings.Repeat("x", maxLabel+1), "a\nb", "\x1b[2J", "\xff"} {
		if _, err := k.NewSlot(slotName, KindAll, label, to, slotTime); err == nil {
			t.Errorf("label %q was taken", label)
		}
	}
	good, err := k.NewSlot(slotName, KindAll, "", to, slotTime)
	if err != nil {
		t.Fatal(err)
	}
	long := slices.Clone(good)
	binary.LittleEndian.PutUint32(long[slotHeader-4:], 1<<31)
	newer := slices.Clone(good)
	newer[8] = 2
	for name, b := range map[string][]byte{"empty": nil, "short": good[:60], "info longer than the slot": long, "version": newer, "too long": make([]byte, MaxSlot+1)} {
		if _, err := ParseSlot(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// A slot may ask for at most 1 GiB of memory.
	if _, err := OpenSlot([]byte("age-encryption.org/v1\n-> scrypt AAAAAAAAAAAAAAAAAAAAAA 21\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n--- AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"), "x"); !errors.Is(err, ErrWrongSecret) {
		t.Errorf("a slot that wants 2 GiB: %v", err)
	}
}

// SSH private keys that cannot be used are refused in words, and not quoted.
func TestSSHKeysThatDoNotDo(t *testing.T) {
	locked, _ := sshKey(t, "its own passphrase")
	for name, secret := range map[string]string{"with a passphrase": locked, "cut short": locked[:len(locked)/2]} {
		if _, err := For(secret); !errors.Is(err, ErrSecret) || strings.Contains(err.Error(), locked[40:60]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, line := range []string{"ssh-rsa AAAAB3Nza", "ssh-ed25519 AAAA", "age1nonsense", "hello", ""} {
		if _, err := ParseRecipient(line); !errors.Is(err, ErrSecret) {
			t.Errorf("recipient %q: %v", line, err)
		}
	}
}

// Slots that the first cairn of their version made open for ever.
func TestFrozenSlots(t *testing.T) {
	dir := filepath.Join("testdata", "slot1")
	if *update {
		writeSlots(t, dir)
	}
	for _, kind := range Kinds() {
		for method, secret := range map[Method]string{MethodPassphrase: "correct horse", MethodAge: readFile(t, dir, "age.key"), MethodSSH: readFile(t, dir, "ssh.key")} {
			name := string(kind) + "-" + string(method)
			s, err := ParseSlot([]byte(readFile(t, dir, name)))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			k, err := s.Open(secret)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if err := s.Check("keys/"+name, k); err != nil || k.Kind() != kind || s.Info.Kind != kind || s.Info.Opens != method || s.Info.Label != "frozen" {
				t.Errorf("%s: %+v, %v", name, s.Info, err)
			}
		}
	}
}

func readFile(t testing.TB, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeSlots(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	k := newKeyring(t)
	private, _ := sshKey(t, "")
	secrets := map[Method]string{MethodPassphrase: "correct horse", MethodAge: mustNew(t), MethodSSH: private}
	files := map[string]string{"age.key": secrets[MethodAge], "ssh.key": private}
	for _, kind := range Kinds() {
		for method, secret := range secrets {
			name := string(kind) + "-" + string(method)
			b, err := k.NewSlot("keys/"+name, kind, "frozen", recipientOf(t, secret), slotTime)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = string(b)
		}
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzSlot(f *testing.F) {
	k := newKeyring(f)
	secret := mustNew(f)
	good, err := k.NewSlot(slotName, KindAll, "a label", recipientOf(f, secret), slotTime)
	if err != nil {
		f.Fatal(err)
	}
	bare, err := encrypt(k.Marshal(), recipientOf(f, secret).to)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bare)
	f.Add([]byte("age-encryption.org/v1\n-> scrypt AAAA 60\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSlot(b)
		if err != nil {
			return
		}
		if CheckLabel(s.Info.Label) != nil || len(s.Info.Kind) > maxLabel || len(s.Info.Fingerprint) > maxLabel {
			t.Error("an info out of bounds")
		}
		if !s.Bare && s.Check(slotName, k) == nil && !bytes.Equal(b, good) {
			t.Error("a forged slot was believed")
		}
		if got, err := s.Open(secret); err == nil && got.ChunkID != k.ChunkID {
			t.Error("a forged slot opened")
		}
	})
}
