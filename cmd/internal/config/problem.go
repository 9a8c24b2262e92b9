package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxProblems bounds how many problems are reported at once.
const maxProblems = 20

// Where is a place in a configuration file. Lines and columns begin at 1, a
// column is a character; a Line of 0 is the whole file.
type Where struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String gives FILE:LINE:COLUMN, as editors and compilers have it.
func (w Where) String() string {
	if w.Line == 0 {
		return w.File
	}
	return fmt.Sprintf("%s:%d:%d", w.File, w.Line, w.Column)
}

// Problem is something in the configuration that a person should look at.
type Problem struct {
	Where Where  `json:"where"`
	Text  string `json:"message"`
}

func (p Problem) String() string {
	if p.Where.File == "" {
		return p.Text
	}
	return p.Where.String() + ": " + p.Text
}

// Problems are why a configuration was not loaded.
type Problems []Problem

// Error gives a line for each of the first problems.
func (p Problems) Error() string {
	var lines []string
	for _, one := range p[:min(len(p), maxProblems)] {
		lines = append(lines, one.String())
	}
	if more := len(p) - maxProblems; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// sortProblems brings problems into the order of the files, as they were read,
// and of their lines.
func sortProblems(list []Problem, files []string) {
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(slices.Index(files, a.Where.File), slices.Index(files, b.Where.File)),
			cmp.Compare(a.Where.Line, b.Where.Line), cmp.Compare(a.Where.Column, b.Where.Column))
	})
}

// meant finds the word that a misspelt one was meant to be, or "".
func meant(word string, words []string) string {
	best, limit := "", len(word)/3+1
	for _, w := range words {
		d := distance(strings.ToLower(word), w)
		if strings.HasPrefix(w, strings.ToLower(word)) && len(word) >= 3 {
			d = min(d, 1) // keep for keep_last
		}
		if d <= limit {
			best, limit = w, d-1
		}
	}
	return best
}

// distance counts the letters to add, drop, change or swap to make b of a.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
