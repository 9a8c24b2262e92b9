package ext4

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// encryptDir sets a policy with a new key on an empty directory.
func encryptDir(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ioctl := func(request uint, arg unsafe.Pointer) {
		t.Helper()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
			t.Skipf("this kernel does not encrypt directories: %v", errno)
		}
	}
	var key struct {
		unix.FscryptAddKeyArg
		raw [64]byte
	}
	key.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	key.Raw_size = 64
	copy(key.raw[:], "a key of 64 bytes for a test, nothing that anybody should use...")
	ioctl(unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&key))
	policy := unix.FscryptPolicyV2{
		Version:                   unix.FSCRYPT_POLICY_V2,
		Contents_encryption_mode:  unix.FSCRYPT_MODE_AES_256_XTS,
		Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS,
	}
	copy(policy.Master_key_identifier[:], key.Key_spec.U[:16])
	ioctl(unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy))
}

// TestEncrypted shows encrypted names as Linux does without the key, in small
// and in indexed directories, and refuses contents and targets.
func TestEncrypted(t *testing.T) {
	filesystemtest.NeedRoot(t)
	image := filesystemtest.Image(t, 32<<20, "mkfs.ext4", "-q", "-O", "encrypt")
	dir, unmount := filesystemtest.LoopMount(t, image, "")
	enc := dir + "/enc"
	if err := os.Mkdir(enc, 0o755); err != nil {
		t.Fatal(err)
	}
	encryptDir(t, enc)
	if err := os.Mkdir(enc+"/many", 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		name := fmt.Sprintf("%s/many/file-%d-%s", enc, i, strings.Repeat("n", i))
		if err := os.WriteFile(name, []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/plain", []byte("plain"), 0o644); err != nil {
		t.Fatal(err)
	}
	unmount()
	want := filesystemtest.Truth(t, image, "ro")
	fs := openImage(t, image)
	got, err := filesystemtest.Walk(context.Background(), fs)
	if err != nil {
		t.Fatal(err)
	}
	// Without the key the kernel is not asked for contents and holes.
	const fields = filesystemtest.AllFields &^ filesystemtest.Contents &^ filesystemtest.Holes
	for _, d := range filesystemtest.Compare(want, got, fields) {
		t.Error(d)
	}
	refused := 0
	for path := range want {
		if path == "." || path == "lost+found" {
			continue
		}
		in := at(t, fs, path)
		if in.isRegular() {
			if _, err := fs.Open(context.Background(), filesystem.Ino(in.ino)); errors.Is(err, filesystem.ErrEncrypted) {
				refused++
			}
		}
	}
	if refused != 200 {
		t.Errorf("%d files are refused, want 200", refused)
	}
}
