package cli

import "testing"

// A word that names no command is a usage error wherever it stands.
func TestUnknownSubcommands(t *testing.T) {
	h := newHost(t)
	for _, group := range []string{"agent", "config", "engine", "key", "place", "repair", "vm"} {
		if out, _ := h.must(exitUsage, group, "nonsense"); out != "" {
			t.Errorf("%s nonsense: %s", group, out)
		}
		if group != "key" {
			h.must(exitOK, group)
		}
	}
}
