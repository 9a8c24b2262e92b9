package metrics

import (
	"fmt"
	"strings"
)

// How many things of a kind have series of their own, and how long a name is.
const (
	maxVMs   = 10_000
	maxOther = 1_000
	maxRunes = 128
)

// labels makes names into label values, each one another.
type labels map[string]bool

// of gives the label value of a name.
func (l labels) of(name string) string {
	value := label(name)
	unique := value
	for n := 2; l[unique]; n++ {
		unique = fmt.Sprintf("%s~%d", value, n)
	}
	l[unique] = true
	return unique
}

// label makes any text a label value.
func label(text string) string {
	value := strings.ToValidUTF8(text, "\uFFFD")
	if r := []rune(value); len(r) > maxRunes {
		value = string(r[:maxRunes-1]) + "…"
	}
	return value
}
