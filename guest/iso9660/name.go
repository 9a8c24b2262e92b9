package iso9660

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// isJoliet says whether a supplementary descriptor's names are of UCS-2, by
// its escape sequences of levels 1 to 3 (Joliet specification, "SVD Escape
// Sequences Field").
func isJoliet(b []byte) bool {
	escape := string(b[88:91])
	return escape == "%/@" || escape == "%/C" || escape == "%/E"
}

func trimLabel(b []byte) string {
	return strings.TrimRight(string(bytes.TrimRight(b, "\x00")), " ")
}

// volumeDate writes the time of modification, else of creation, of a volume
// descriptor as blkid(8) does: digits of year, month, … to hundredths.
func volumeDate(b []byte) string {
	for _, digits := range [][]byte{b[830:846], b[813:829]} {
		ok := !bytes.Equal(digits, []byte("0000000000000000"))
		for _, d := range digits {
			ok = ok && d >= '0' && d <= '9'
		}
		if !ok {
			continue
		}
		parts := []string{string(digits[:4])}
		for i := 4; i < 16; i += 2 {
			parts = append(parts, string(digits[i:i+2]))
		}
		return strings.Join(parts, "-")
	}
	return ""
}

// appendUCS2 appends big-endian UTF-16 as UTF-8, a lone half of a surrogate
// pair in three bytes as if it were a character (WTF-8).
func appendUCS2(dst, b []byte) []byte {
	for ; len(b) >= 2; b = b[2:] {
		u := rune(binary.BigEndian.Uint16(b))
		switch {
		case !utf16.IsSurrogate(u):
			dst = utf8.AppendRune(dst, u)
			continue
		case len(b) >= 4:
			if r := utf16.DecodeRune(u, rune(binary.BigEndian.Uint16(b[2:]))); r != utf8.RuneError {
				dst = utf8.AppendRune(dst, r)
				b = b[2:]
				continue
			}
		}
		dst = append(dst, 0xE0|byte(u>>12), 0x80|byte(u>>6&0x3F), 0x80|byte(u&0x3F))
	}
	return dst
}

// jolietName is a Joliet name without its version and dots at its end.
func jolietName(dst, raw []byte) []byte {
	dst = bytes.TrimSuffix(appendUCS2(dst, raw), []byte(";1"))
	for len(dst) >= 2 && dst[len(dst)-1] == '.' {
		dst = dst[:len(dst)-1]
	}
	return dst
}

// plainName is a name of ISO 9660 as Linux shows it: in lower case, without
// its version and a dot without an extension.
func plainName(dst, raw []byte) []byte {
	raw = bytes.TrimSuffix(raw, []byte(";1"))
	raw = bytes.TrimSuffix(raw, []byte("."))
	for _, b := range raw {
		switch {
		case b >= 'A' && b <= 'Z':
			b += 'a' - 'A'
		case b == ';' || b == '/':
			b = '.'
		}
		dst = append(dst, b)
	}
	return dst
}

// validName says whether a name may be passed on.
func validName(name []byte) bool {
	return len(name) > 0 && string(name) != "." && string(name) != ".." && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0
}
