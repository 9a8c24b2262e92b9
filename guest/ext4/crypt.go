package ext4

import (
	"crypto/sha256"
	"encoding/base64"
)

// codedName is what Linux shows of an encrypted name without the key:
// base64url of the directory hash, the first 149 bytes of the name, and the
// SHA-256 of the rest (fs/crypto/fname.c, fscrypt_nokey_name).
func (fs *FS) codedName(dir *inode, name []byte) string {
	const kept = 149
	version := fs.sb.hashVersion
	major, minor, ok := fs.sb.hashName(name, version)
	if !ok || dir.flags()&flagCasefold != 0 {
		// The hash of casefolded encrypted names is stored with each entry.
		if end := 8 + (len(name)+3)&^3; cap(name) >= end-8+8 {
			stored := name[:end][end-8:]
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
