package image

import (
	"errors"
	"fmt"
	"os"

	"cairn/qmp/storage"
)

// ErrInUse: a running VM, or a tool of QEMU's, has the image open.
var ErrInUse = errors.New("the image is in use")

// refuseUsed says ErrInUse if QEMU has the file open in any way.
func refuseUsed(f *os.File) error {
	used, by, err := storage.Used(f)
	if used && err == nil {
		err = fmt.Errorf("%s: %w%s: shut the VM down first, or restore to another file", f.Name(), ErrInUse, by)
	}
	return err
}

// lockImage keeps QEMU out, so that no VM can start on an image that is half
// written, while f is open. f must be open for reading.
func lockImage(f *os.File) error {
	if err := refuseUsed(f); err != nil {
		return err
	}
	if err := storage.Lock(f); err != nil {
		return err
	}
	return refuseUsed(f) // who came between the question and the locks
}
