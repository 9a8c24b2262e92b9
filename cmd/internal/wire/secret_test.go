package wire

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretInAFile(t *testing.T) {
	const key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n"
	for text, want := range map[string]string{
		"hunter2":              "hunter2",
		"hunter2\n":            "hunter2",
		"hunter2\r\nmore\n":    "hunter2",
		"# a passphrase\nmore": "# a passphrase",
		" blanks count \n":     " blanks count ",
		"AGE-SECRET-KEY-1X\n":  "AGE-SECRET-KEY-1X",
		"# created: 2026\n# public key: age1x\nAGE-SECRET-KEY-1X\n": "AGE-SECRET-KEY-1X",
		"# created\r\nAGE-SECRET-KEY-PQ-1X\r\n":                     "AGE-SECRET-KEY-PQ-1X",
		key:                                                         key,
		"":                                                          "",
		"\nhunter2":                                                 "",
		strings.Repeat("x", 4097):                                   "",
		strings.Repeat("x\n", 1<<16):                                "",
		"-----BEGIN RSA PRIVATE KEY---":                             "",
	} {
		got, err := secretIn(text)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%.20q: %.20q, %v", text, got, err)
		}
	}
}

func TestSecretFileOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(path, []byte("canary\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecretFile(path); !errors.Is(err, ErrSecret) || !strings.Contains(err.Error(), "chmod 600") || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
	if _, err := (Secret{}).Read("?"); !errors.Is(err, ErrSecret) {
		t.Errorf("without a file or a terminal: %v", err)
	}
}
