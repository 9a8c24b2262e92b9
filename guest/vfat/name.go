package vfat

import (
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// codePage437 is the upper half of the code page of short names.
const codePage437 = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒ" +
	"áíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐" +
	"└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀" +
	"αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0"

var page437 = [128]rune([]rune(codePage437))

// appendShort appends bytes of a short name as UTF-8, without the spaces that
// fill it. In lower case only what the code page has in both cases changes.
func appendShort(dst, raw []byte, lower bool) []byte {
	for len(raw) > 0 && raw[len(raw)-1] == ' ' {
		raw = raw[:len(raw)-1]
	}
	for _, b := range raw {
		switch {
		case b < 0x80 && lower && b >= 'A' && b <= 'Z':
			dst = append(dst, b+'a'-'A')
		case b < 0x80:
			dst = append(dst, b)
		default:
			r := page437[b-0x80]
			if l := unicode.ToLower(r); lower && l != r && strings.ContainsRune(codePage437, l) {
				r = l
			}
			dst = utf8.AppendRune(dst, r)
		}
	}
	return dst
}

// appendUTF16 appends UTF-16 as UTF-8. A lone half of a surrogate pair is
// appended in three bytes as if it were a character (WTF-8).
func appendUTF16(dst []byte, units []uint16) []byte {
	for i := 0; i < len(units); i++ {
		u := rune(units[i])
		switch {
		case u < 0x80:
			dst = append(dst, byte(u))
		case !utf16.IsSurrogate(u):
			dst = utf8.AppendRune(dst, u)
		default:
			if i+1 < len(units) {
				if r := utf16.DecodeRune(u, rune(units[i+1])); r != utf8.RuneError {
					dst = utf8.AppendRune(dst, r)
					i++
					continue
				}
			}
			dst = append(dst, 0xE0|byte(u>>12), 0x80|byte(u>>6&0x3F), 0x80|byte(u&0x3F))
		}
	}
	return dst
}

// validName says whether a name may be passed on.
func validName(name []byte) bool {
	if len(name) == 0 || string(name) == "." || string(name) == ".." {
		return false
	}
	for _, b := range name {
		if b == '/' || b == 0 {
			return false
		}
	}
	return true
}

// sameFold says whether two names differ in case only. Bytes that are no
// UTF-8 must be equal.
func sameFold(a, b string) bool {
	for len(a) > 0 && len(b) > 0 {
		r, n := utf8.DecodeRuneInString(a)
		s, m := utf8.DecodeRuneInString(b)
		if r == utf8.RuneError && n == 1 || s == utf8.RuneError && m == 1 {
			if a[0] != b[0] {
				return false
			}
			a, b = a[1:], b[1:]
			continue
		}
		if r != s && unicode.ToUpper(r) != unicode.ToUpper(s) {
			return false
		}
		a, b = a[n:], b[m:]
	}
	return len(a) == len(b)
}
