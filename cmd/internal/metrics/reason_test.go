package metrics

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func contextFor(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// TestEveryReasonHasALabel looks through the source of what decides on full reads:
// a new reason there needs a label here.
func TestEveryReasonHasALabel(t *testing.T) {
	found := 0
	for _, folder := range []string{"../../../qmp", "../../../qmp/libvirt", "../job"} {
		files, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(folder, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range reasonTexts(f) {
				found++
				if list := labelsOf("vda: full read: " + text); slices.Contains(list, otherReason) {
					t.Errorf("%s: %q has no label", name, text)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d reasons were found: they are elsewhere now", found)
	}
}

// reasonTexts gives the texts in a file that are, or are part of, a full read's
// reason.
func reasonTexts(f *ast.File) (list []string) {
	add := func(n ast.Node) {
		if sum, ok := n.(*ast.BinaryExpr); ok { // "a" + x + "b" is one text
			n = &ast.BasicLit{Kind: token.STRING, Value: strconv.Quote(joined(sum))}
		}
		ast.Inspect(n, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil && strings.Count(text, " ") > 2 {
					list = append(list, text)
				}
			}
			return true
		})
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if slices.Contains([]string{"changed", "untrusted", "missing", "version2"}, n.Name.Name) && n.Recv == nil {
				add(n.Body)
			}
		case *ast.CallExpr: // Plan's own: full("…")
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "full" {
				add(n)
			}
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				s, ok := left.(*ast.SelectorExpr)
				if ok && s.Sel.Name == "NoBitmaps" && i < len(n.Rhs) {
					add(n.Rhs[i])
				}
				if id, ok := left.(*ast.Ident); ok && id.Name == "lie" && i < len(n.Rhs) {
					add(n.Rhs[i])
				}
			}
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING && strings.HasPrefix(text, "full read: ") && strings.Count(text, " ") > 2 {
				list = append(list, text)
			}
		}
		return true
	})
	return list
}

func TestLabelsOf(t *testing.T) {
	for sentence, want := range map[string]string{
		"vda, vdb: full read: the repository has no earlier point of this disk":                                                             "first_point",
		"vda: full read: asked for with --every-block, and the last point leaves something out":                                             "asked",
		"vda: full read: the agent is gone, and the last point leaves something out":                                                        "free_space_unknown",
		"vda: full read: bitmap x is gone: qcow2 version 2 cannot keep bitmaps over a restart of the VM; qemu-img amend makes it version 3": "format",
		"vda: full read: the audit found 1 of 2 chunks of disk vda changed; vdb: full read: bitmap b, the newest, does not record":          "audit bitmap_unusable",
		"\xff": "other", "": "other",
	} {
		if got := strings.Join(labelsOf(sentence), " "); got != want {
			t.Errorf("%q: %s, want %s", sentence, got, want)
		}
	}
}

// joined gives the texts of a sum, in their order.
func joined(sum ast.Node) (text string) {
	ast.Inspect(sum, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			part, err := strconv.Unquote(lit.Value)
			if err == nil {
				text += part
			}
		}
		return true
	})
	return text
}
