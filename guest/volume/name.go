package volume

import (
	"fmt"
	"strings"
	"unicode"
)

// nameVolumes gives all volumes their unique names.
func (s *Set) nameVolumes() {
	taken := make(map[string]bool, len(s.Volumes))
	for i := range s.Volumes {
		v := &s.Volumes[i]
		base := v.baseName()
		v.Name = base
		for n := 2; taken[v.Name]; n++ {
			v.Name = fmt.Sprintf("%s-%d", base, n)
		}
		taken[v.Name] = true
	}
}

func (v *Volume) baseName() string {
	name := sanitise(v.Disk)
	if name == "" {
		name = "disk"
	}
	if v.Partition > 0 {
		if last := name[len(name)-1]; last >= '0' && last <= '9' {
			name += "p" // nvme0n1p1
		}
		name += fmt.Sprint(v.Partition)
	}
	name += "-" + v.Type
	if label := sanitise(v.Label); label != "" {
		return name + "-" + label
	}
	if label := sanitise(v.PartLabel); label != "" {
		return name + "-" + label
	}
	return name
}

// sanitise keeps letters, digits, '.', '-' and '_' of at most 48 runes, and
// nothing that would hide a directory or lead out of it.
func sanitise(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > 48 {
			break
		}
		if r == unicode.ReplacementChar || r != '.' && r != '-' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			r = '_'
		}
		b.WriteRune(r)
	}
	return strings.Trim(b.String(), "._-")
}
