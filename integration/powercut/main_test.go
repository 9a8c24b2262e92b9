package powercut

import (
	"os"
	"testing"
)

// TestMain serves a disk where it was started for that, and else runs the tests
// in a mount namespace of their own.
func TestMain(m *testing.M) {
	if code, served := Served(); served {
		os.Exit(code)
	}
	if code, done := Private(); done {
		os.Exit(code)
	}
	os.Exit(m.Run())
}
