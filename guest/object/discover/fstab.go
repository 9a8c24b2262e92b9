package discover

import (
	"context"
	"path"
	"strconv"
	"strings"

	"cairn/guest/object"
)

// Mounts tells the filesystems of block devices that a guest mounts, by its
// /etc/fstab; in its order. What was really mounted, and how large it is, is
// not known. Source: fstab(5).
func Mounts(ctx context.Context, root Root) ([]object.Mount, error) {
	s := look(root)
	return fstab(string(s.read(ctx, "/etc/fstab", maxConfig))), s.err()
}

func fstab(text string) []object.Mount {
	var mounts []object.Mount
	for line := range strings.Lines(text) {
		field := strings.Fields(line)
		if len(field) < 3 || strings.HasPrefix(field[0], "#") || len(mounts) >= object.MaxMounts/2 {
			continue
		}
		m := object.Mount{
			Source:     object.Text(Unescape(field[0])),
			Mountpoint: object.Text(path.Clean(Unescape(field[1]))),
			Type:       object.Text(field[2]),
			Reason:     "from /etc/fstab: what was mounted is not known",
		}
		if len(field) > 3 {
			m.Options = object.Text(Unescape(field[3]))
		}
		switch tag, value, _ := strings.Cut(m.Source, "="); {
		case tag == "UUID":
			m.UUID = strings.Trim(value, `"`)
		case tag == "LABEL":
			m.Label = strings.Trim(value, `"`)
		case tag == "PARTUUID" || tag == "PARTLABEL" || tag == "ID":
		case strings.HasPrefix(m.Source, "/dev/"):
			m.UUID = after(m.Source, "/dev/disk/by-uuid/")
			m.Label = after(m.Source, "/dev/disk/by-label/")
		default:
			continue // tmpfs, proc, a server, a bind mount
		}
		if strings.HasPrefix(m.Mountpoint, "/") && m.Type != "swap" {
			mounts = append(mounts, m)
		}
	}
	return mounts
}

// after gives what follows a prefix, "" when it is not there.
func after(s, prefix string) string {
	if rest, ok := strings.CutPrefix(s, prefix); ok {
		return rest
	}
	return ""
}

// Unescape decodes \040 and the like, as fstab and the kernel's mount tables write
// what would not be one word.
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
