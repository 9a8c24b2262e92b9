package ext4

import (
	"crypto/sha256"
	"encoding/base64"
)

// codedName is what Linux shows of an encrypted name without the key:
// base64url of the directory hash, the first 149 bytes of the name, and the
// SHA-256 of the rest (fs/crypto/fname.c, fscrypt_nokey_name).
func (fs *FS) codedName(dir *inode, d *dirent) string {
	const kept = 149
	name := d.name
	major, minor, _ := fs.sb.hashName(name, fs.sb.hashVersion)
	if dir.flags()&flagCasefold != 0 {
		// The hash is keyed; it follows the name, aligned to four bytes.
		if stored := d.rest[min(len(d.rest), -len(name)&3):]; len(stored) >= 8 {
			major, minor = le.Uint32(stored), le.Uint32(stored[4:])
		}
	}
	b := le.AppendUint32(le.AppendUint32(nil, major), minor)
	if len(name) <= kept {
		b = append(b, name...)
	} else {
		b = append(b, name[:kept]...)
		rest := sha256.Sum256(name[kept:])
		b = append(b, rest[:]...)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}
