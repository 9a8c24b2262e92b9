package lab

import "testing"

func TestParseVersion(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", "7.2.22"},
		{"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)", "10.0.2"},
		{"QEMU emulator version 9.1\n", "9.1"},
		{"QEMU emulator version x", ""},
		{"no such thing", ""},
		{"", ""},
	} {
		if got, ok := parseVersion(c.text); got != c.want || ok != (c.want != "") {
			t.Errorf("%q: %q, %v, want %q", c.text, got, ok, c.want)
		}
	}
}
