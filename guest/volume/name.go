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
	name := v.stem + "-" + v.Type
	if label := sanitise(v.Label); label != "" {
		return name + "-" + label
	}
	if label := sanitise(v.PartLabel); label != "" {
		return name + "-" + label
	}
	return name
}

// stem makes the beginning of a volume's name of that of its device.
func stem(device, otherwise string) string {
	if s := sanitise(device); s != "" {
		return s
	}
	return otherwise
}

// partitionStem names a partition as Linux does: vda1, nvme0n1p1, md0p1.
func partitionStem(of Volume, number int) string {
	if last := of.stem[len(of.stem)-1]; last >= '0' && last <= '9' || of.Logical != "" {
		return fmt.Sprintf("%sp%d", of.stem, number)
	}
	return fmt.Sprintf("%s%d", of.stem, number)
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
