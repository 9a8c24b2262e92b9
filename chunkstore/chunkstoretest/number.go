package chunkstoretest

import (
	"os"
	"strconv"
	"testing"
)

// Number gives the number in an environment variable, or another one when it is
// not set. What is no number ends the test.
func Number(t testing.TB, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
