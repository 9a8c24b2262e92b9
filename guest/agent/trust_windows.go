package agent

import (
	"io"
	"os"
)

// CheckTrusted trusts the access list that the folder has.
func CheckTrusted(*os.File) error { return nil }

func checkTrustedPath(string) error { return nil }

// lockFile does not lock: a virtio-serial port can be opened only once.
func lockFile(name string) (io.Closer, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
}
