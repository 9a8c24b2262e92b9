package seal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
)

// A secret opens key slots. It is a string of one of three forms: a
// passphrase, an age identity ("AGE-SECRET-KEY-…"), or the text of an OpenSSH
// private key file (ed25519, without a passphrase of its own).
const (
	identityPrefix = "AGE-SECRET-KEY-"
	sshPrefix      = "-----BEGIN OPENSSH PRIVATE KEY-----"
)

// Method is how a key slot opens. Part of the on-disk format.
type Method string

// The methods.
const (
	MethodPassphrase Method = "passphrase"
	MethodAge        Method = "age"
	MethodSSH        Method = "ssh-ed25519"
)

// Words says what one has that opens such a slot.
func (m Method) Words() string {
	switch m {
	case MethodPassphrase:
		return "a passphrase"
	case MethodAge:
		return "an age identity"
	case MethodSSH:
		return "an SSH key"
	}
	return "something else"
}

// ErrSecret: a secret, or who a slot is to be for, has no usable form. The
// text never quotes it.
var ErrSecret = errors.New("no usable secret")

// IsIdentity says whether a secret is an age identity, which needs no slow
// key derivation.
func IsIdentity(secret string) bool { return strings.HasPrefix(secret, identityPrefix) }

// IsSSH says whether a secret is, or begins like, an OpenSSH private key.
func IsSSH(secret string) bool { return strings.HasPrefix(secret, sshPrefix) }

// IsSlow says whether a secret opens slots by a slow key derivation.
func IsSlow(secret string) bool { return !IsIdentity(secret) && !IsSSH(secret) }

// scryptWork is log2 of scrypt's N (RFC 7914; r=8, p=1): 64 MiB and about
// 0.2 s. age stores it in the slot. scryptWorkMax bounds what a hostile slot
// may ask for (1 GiB).
const (
	scryptWork    = 16
	scryptWorkMax = 20
)

// A Recipient is for whom a key slot is sealed.
type Recipient struct {
	method      Method
	fingerprint string // "" of a passphrase
	to          age.Recipient
	check       age.Identity // opens what is sealed; nil when only the public half is known
}

// Method says how a slot for the recipient opens.
func (r Recipient) Method() Method { return r.method }

// Fingerprint names a public key, as Info does.
func (r Recipient) Fingerprint() string { return r.fingerprint }

// For gives the recipient whose slots a secret opens.
func For(secret string) (Recipient, error) {
	switch {
	case IsIdentity(secret):
		return forIdentity(secret)
	case IsSSH(secret):
		return forSSH(secret)
	case secret == "":
		return Recipient{}, fmt.Errorf("%w: the passphrase is empty", ErrSecret)
	}
	to, err := age.NewScryptRecipient(secret)
	if err != nil {
		return Recipient{}, fmt.Errorf("%w: the passphrase", ErrSecret)
	}
	to.SetWorkFactor(scryptWork)
	id, err := identity(secret)
	return Recipient{method: MethodPassphrase, to: to, check: id}, err
}

func forIdentity(secret string) (Recipient, error) {
	id, err := identity(secret)
	if err != nil {
		return Recipient{}, err
	}
	switch id := id.(type) {
	case *age.X25519Identity:
		return Recipient{MethodAge, ageFingerprint(id.Recipient().String()), id.Recipient(), id}, nil
	case *age.HybridIdentity:
		return Recipient{MethodAge, ageFingerprint(id.Recipient().String()), id.Recipient(), id}, nil
	}
	return Recipient{}, fmt.Errorf("%w: an age identity of a form that is not known", ErrSecret)
}

func forSSH(secret string) (Recipient, error) {
	id, err := identity(secret)
	if err != nil {
		return Recipient{}, err
	}
	key, err := ssh.ParseRawPrivateKey([]byte(secret))
	if err != nil {
		return Recipient{}, errSSH
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return Recipient{}, errSSH
	}
	return Recipient{MethodSSH, ssh.FingerprintSHA256(signer.PublicKey()), id.(*agessh.Ed25519Identity).Recipient(), id}, nil
}

// ParseRecipient reads who a slot shall be for: an age recipient ("age1…") or
// a line of an SSH public key file ("ssh-ed25519 …").
func ParseRecipient(line string) (Recipient, error) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "age1") {
		list, err := age.ParseRecipients(strings.NewReader(line))
		if err != nil || len(list) != 1 {
			return Recipient{}, fmt.Errorf("%w: the age recipient cannot be parsed: is it complete?", ErrSecret)
		}
		return Recipient{method: MethodAge, fingerprint: ageFingerprint(line), to: list[0]}, nil
	}
	if !strings.HasPrefix(line, "ssh-ed25519 ") {
		return Recipient{}, fmt.Errorf("%w: give an age recipient (age1…) or an SSH public key of the type ssh-ed25519", ErrSecret)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return Recipient{}, fmt.Errorf("%w: the SSH public key cannot be parsed", ErrSecret)
	}
	to, err := agessh.NewEd25519Recipient(public)
	if err != nil {
		return Recipient{}, fmt.Errorf("%w: the SSH public key is no key of the type ssh-ed25519", ErrSecret)
	}
	return Recipient{method: MethodSSH, fingerprint: ssh.FingerprintSHA256(public), to: to}, nil
}

// ageFingerprint names an age recipient without showing it: its slots hide
// for whom they are, and a hash keeps it so. Part of the on-disk format.
func ageFingerprint(recipient string) string {
	sum := sha256.Sum256([]byte(recipient))
	return hex.EncodeToString(sum[:8])
}

var errSSH = fmt.Errorf("%w: an SSH private key opens slots if it is of the type ed25519 and has no passphrase of its own", ErrSecret)

// identity gives what opens age files with a secret. Its errors quote nothing.
func identity(secret string) (age.Identity, error) {
	switch {
	case IsIdentity(secret):
		list, err := age.ParseIdentities(strings.NewReader(secret))
		if err != nil || len(list) != 1 {
			return nil, fmt.Errorf("%w: the secret begins like an age identity but cannot be parsed: check that the file is complete", ErrSecret)
		}
		return list[0], nil
	case IsSSH(secret):
		key, err := ssh.ParseRawPrivateKey([]byte(secret))
		if err != nil {
			return nil, errSSH
		}
		private, ok := key.(*ed25519.PrivateKey)
		if !ok {
			return nil, errSSH
		}
		id, err := agessh.NewEd25519Identity(*private)
		if err != nil {
			return nil, errSSH
		}
		return id, nil
	}
	id, err := age.NewScryptIdentity(secret)
	if err != nil {
		return nil, ErrWrongSecret
	}
	id.SetMaxWorkFactor(scryptWorkMax)
	return id, nil
}

// NewIdentity makes an age identity: a secret that nobody can guess, and the
// recipient that belongs to it.
func NewIdentity() (secret, recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("make an age identity: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// NewRecoveryKey makes a secret to be printed.
func NewRecoveryKey() (string, error) {
	secret, _, err := NewIdentity()
	return secret, err
}

// stanza gives how a bare age file opens, by the first line about a recipient.
func stanza(file []byte) Method {
	lines := strings.SplitN(string(file[:min(len(file), 1024)]), "\n", 3)
	if len(lines) < 3 {
		return ""
	}
	fields := strings.Fields(lines[1])
	if len(fields) < 2 || fields[0] != "->" {
		return ""
	}
	switch fields[1] {
	case "scrypt":
		return MethodPassphrase
	case "X25519", "mlkem768x25519":
		return MethodAge
	case "ssh-ed25519":
		return MethodSSH
	}
	return ""
}
