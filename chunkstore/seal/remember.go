package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"time"

	"golang.org/x/crypto/scrypt"
	"golang.org/x/sys/unix"
)

// RememberFor is how long opened keys stay in the kernel.
const RememberFor = 15 * time.Minute

// A remembered payload: salt, a check of the secret, the keys.
const (
	rememberSalt  = 16
	rememberCheck = 32
)

// checkWork is log2 of scrypt's N for the check: a few milliseconds. It only
// keeps the passphrase itself from being guessed quickly by who could read
// the remembered keys anyway: this user and root.
const checkWork = 12

func secretCheck(secret string, salt []byte) ([]byte, error) {
	return scrypt.Key([]byte(secret), salt, 1<<checkWork, 8, 1, rememberCheck)
}

// Remember keeps the keys that a secret opened in the kernel's keyring of
// this user (keyrings(7)), so that the next commands need not derive them
// again. They are gone after RememberFor, never on a disk, and given only to
// who has the secret. A kernel without keyrings remembers nothing.
func (k *Keyring) Remember(name, secret string) {
	salt := make([]byte, rememberSalt)
	_, _ = rand.Read(salt) // never fails
	check, err := secretCheck(secret, salt)
	if err != nil {
		return
	}
	payload := bytes.Join([][]byte{salt, check, k.Marshal()}, nil)
	id, err := unix.AddKey("user", name, payload, unix.KEY_SPEC_USER_KEYRING)
	if err != nil {
		return
	}
	// The owner may find and read it also from a session that does not
	// possess the user's keyring, as those of cron and systemd do not.
	const possessorAll, ownerViewReadSearch = 0x3f000000, 0x000b0000
	_, err = unix.KeyctlInt(unix.KEYCTL_SETPERM, id, possessorAll|ownerViewReadSearch, 0, 0)
	if err == nil {
		_, err = unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, int(RememberFor/time.Second), 0, 0)
	}
	if err != nil { // without an end it must not stay
		_, _ = unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
	}
}

// Recall gives the keys remembered under a name, if the secret is the one
// that opened them.
func Recall(name, secret string) (*Keyring, bool) {
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", name, 0)
	if err != nil {
		return nil, false
	}
	buf := make([]byte, 4096)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, buf, 0)
	if err != nil || n < rememberSalt+rememberCheck || n > len(buf) {
		return nil, false
	}
	salt, check, body := buf[:rememberSalt], buf[rememberSalt:rememberSalt+rememberCheck], buf[rememberSalt+rememberCheck:n]
	want, err := secretCheck(secret, salt)
	if err != nil || subtle.ConstantTimeCompare(want, check) != 1 {
		return nil, false
	}
	k, err := Unmarshal(body)
	return k, err == nil
}

// Forget drops what is remembered under a name: the secret that opened it may
// no longer count.
func Forget(name string) {
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", name, 0)
	if err == nil {
		_, _ = unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0) // else it ends by itself, soon
	}
}
