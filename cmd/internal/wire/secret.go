package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"cairn/chunkstore/seal"
)

// Secret says where a repository's secret comes from.
type Secret struct {
	File   string                                // --password-file or CAIRN_PASSWORD_FILE
	Prompt func(question string) (string, error) // nil: no terminal
}

// Bounds in bytes: of a passphrase or an age identity, and of a file that
// holds one or an SSH private key.
const (
	maxSecret     = 4096
	maxSecretFile = 64 << 10
)

// Read gives the secret: from the file, else from the terminal.
func (s Secret) Read(question string) (string, error) {
	if s.File != "" {
		return readSecretFile(s.File)
	}
	if s.Prompt == nil {
		return "", fmt.Errorf("%w: the repository is encrypted and this is no terminal to ask on: use --password-file FILE or CAIRN_PASSWORD_FILE", ErrSecret)
	}
	return s.Prompt(question)
}

// readSecretFile gives the secret in a file that only its owner can read.
func readSecretFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w: password file: %w", ErrSecret, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("%w: password file: %w", ErrSecret, err)
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%w: others on this host can read %s (mode %04o): chmod 600 %s", ErrSecret, path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", fmt.Errorf("%w: password file: %w", ErrSecret, err)
	}
	secret, err := secretIn(string(b))
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrSecret, path, err)
	}
	return secret, nil
}

// secretIn finds the secret in a file's text: its first line, but of an SSH
// private key all of it, and of what age-keygen writes the line that is no
// comment. Errors do not quote it.
func secretIn(text string) (string, error) {
	if len(text) > maxSecretFile {
		return "", fmt.Errorf("over %d bytes", maxSecretFile)
	}
	if seal.IsSSH(text) {
		return text, nil
	}
	line, rest, more := strings.Cut(text, "\n")
	first := strings.TrimSuffix(line, "\r")
	for more && strings.HasPrefix(line, "#") {
		line, rest, more = strings.Cut(rest, "\n")
	}
	if line = strings.TrimSuffix(line, "\r"); seal.IsIdentity(line) {
		first = line
	}
	if first == "" || len(first) > maxSecret {
		return "", fmt.Errorf("the first line is empty or over %d bytes", maxSecret)
	}
	if strings.HasPrefix(first, "-----BEGIN ") {
		return "", errors.New("it holds a private key of a form that is not known: OpenSSH's of the type ed25519 does, or a passphrase, or an age identity")
	}
	return first, nil
}
