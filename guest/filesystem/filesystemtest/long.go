package filesystemtest

import "os"

// Long says that this is the long run of the tests (`make test-long`).
func Long() bool { return os.Getenv("CAIRN_LONG") != "" }

// DamagedImages is how many damaged images of one filesystem a run of the
// tests walks: 100, in the long run 1,000.
func DamagedImages() int {
	if Long() {
		return 1000
	}
	return 100
}
