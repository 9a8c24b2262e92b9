package tree

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"cairn/guest/filesystem"
)

// Tags of an entry of an ACL in Linux' attribute system.posix_acl_*
// (include/uapi/linux/posix_acl_xattr.h): a version of four bytes, then
// entries of tag (2), permissions (2) and user or group (4).
const (
	aclVersion = 2

	aclUserOwner  = 0x01
	aclUser       = 0x02
	aclGroupOwner = 0x04
	aclGroup      = 0x08
	aclMask       = 0x10
	aclOther      = 0x20
)

// aclText writes an ACL in the short text form of acl(5), users and groups by
// number: "user::rw-,user:1234:r--,group::r--,mask::r--,other::r--".
func aclText(b []byte) (string, error) {
	if len(b) < 4 || len(b)%8 != 4 || binary.LittleEndian.Uint32(b) != aclVersion {
		return "", fmt.Errorf("an ACL of %d bytes: %w", len(b), filesystem.ErrCorrupt)
	}
	var list []string
	for b = b[4:]; len(b) > 0; b = b[8:] {
		tag, perm := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
		name, ok := map[uint16]string{aclUserOwner: "user", aclUser: "user", aclGroupOwner: "group", aclGroup: "group", aclMask: "mask", aclOther: "other"}[tag]
		if !ok || perm > 7 {
			return "", fmt.Errorf("an ACL with entry %#x of permissions %#o: %w", tag, perm, filesystem.ErrCorrupt)
		}
		who := ""
		if tag == aclUser || tag == aclGroup {
			who = strconv.FormatUint(uint64(binary.LittleEndian.Uint32(b[4:])), 10)
		}
		rwx := []byte("---")
		for i, c := range "rwx" {
			if perm>>(2-i)&1 != 0 {
				rwx[i] = byte(c)
			}
		}
		list = append(list, name+":"+who+":"+string(rwx))
	}
	return strings.Join(list, ","), nil
}
