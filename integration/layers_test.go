package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "cairn"

// rules say which rooms of ours a room may import (DESIGN.md section 4). The
// first rule that fits a package counts. "x/..." is x and all below it, "x/*"
// is all below x and not x. What is not listed is forbidden, also to a room's own
// subfolders.
var rules = []struct {
	room    string
	imports []string
}{
	// The bottom: they can be read, tested and moved alone.
	{"guest/filesystem", nil},
	{"guest/object", nil},
	{"chunkstore/chunk", nil},
	{"chunkstore/backend", nil},
	{"qmp/nbd", nil},
	// A backend knows bytes and names, not packs.
	{"chunkstore/backend/*", []string{"chunkstore/backend/..."}},
	// The store has never heard of a VM, a disk, or an index.
	{"chunkstore/...", []string{"chunkstore/..."}},
	// A point's manifest holds its system objects.
	{"index/restorepoint/...", []string{"index/restorepoint/...", "chunkstore/chunk", "guest/object"}},
	// The catalogue of files knows the words of a filesystem, and no reader.
	{"index/catalogue/...", []string{"index/catalogue/...", "index/restorepoint", "chunkstore/chunk", "guest/filesystem"}},
	{"index/...", []string{"index/...", "chunkstore/..."}},
	// The guest's side knows nothing of QEMU's monitor or of the store.
	{"guest/filesystem/*", []string{"guest/filesystem/..."}},
	{"guest/object/*", []string{"guest/object/..."}},
	{"guest/...", []string{"guest/..."}},
	{"qmp/...", []string{"qmp/..."}},
	{"fs/...", []string{"fs/...", "index/restorepoint", "index/catalogue", "guest/volume", "guest/filesystem", "guest/object"}},
	// The story of a run knows every room, and neither flags nor terminals.
	{"cmd/internal/job/...", []string{"cmd/internal/job/...", "qmp/...", "guest/...", "index/...", "chunkstore/..."}},
	{"cmd/cairn-agent/...", []string{"cmd/cairn-agent/...", "cmd/internal/...", "guest/..."}},
	{"cmd/internal/packaging/...", []string{"cmd/internal/packaging/..."}},
	{"cmd/...", []string{"..."}}, // `cairn demo` boots the lab's guest, too
	{"integration/lab/...", []string{"integration/lab/..."}},
	{"integration/...", []string{"..."}},
	{"testdata/...", nil},
}

// unlinked modules must not be part of a program or a room: the inside agent
// shall stay small and unprivileged, and the rooms apart.
var unlinked = []struct {
	room    string
	modules []string
}{
	{"cmd/cairn-agent", []string{"github.com/dgraph-io/badger", "github.com/hanwen/go-fuse", "github.com/digitalocean/go-qemu", "github.com/digitalocean/go-libvirt", "github.com/klauspost/reedsolomon", "github.com/minio/minio-go"}},
	{"guest/...", []string{"github.com/dgraph-io/badger", "github.com/hanwen/go-fuse", "github.com/digitalocean/", "github.com/klauspost/reedsolomon"}},
	{"chunkstore/...", []string{"github.com/dgraph-io/badger", "github.com/hanwen/go-fuse", "github.com/digitalocean/"}},
	{"qmp/...", []string{"github.com/dgraph-io/badger", "github.com/hanwen/go-fuse", "github.com/klauspost/reedsolomon"}},
	{"fs/...", []string{"github.com/dgraph-io/badger", "github.com/digitalocean/", "github.com/minio/minio-go"}},
	{"index/restorepoint/...", []string{"github.com/dgraph-io/badger", "github.com/hanwen/go-fuse", "github.com/digitalocean/"}},
}

// goPackage is what the rules need of `go list -json`.
type goPackage struct {
	ImportPath   string
	Name         string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	Deps         []string
}

func (p goPackage) room() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// fits says whether a room is meant by a pattern of the rules.
func fits(pattern, room string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return room == base || strings.HasPrefix(room, base+"/")
	}
	if base, ok := strings.CutSuffix(pattern, "/*"); ok {
		return strings.HasPrefix(room, base+"/")
	}
	return room == pattern
}

// forbiddenImports returns the imports of a package that no rule allows.
func forbiddenImports(p goPackage) []string {
	for _, rule := range rules {
		if !fits(rule.room, p.room()) {
			continue
		}
		var bad []string
		for _, imp := range p.Imports {
			room, ours := strings.CutPrefix(imp, module+"/")
			if ours && !slices.ContainsFunc(rule.imports, func(pattern string) bool { return fits(pattern, room) }) {
				bad = append(bad, room)
			}
		}
		return bad
	}
	return []string{"anything: the room is in no rule of layers_test.go"}
}

// forbiddenLinks returns the modules that a package must not be built with.
func forbiddenLinks(p goPackage) []string {
	var bad []string
	for _, rule := range unlinked {
		if !fits(rule.room, p.room()) {
			continue
		}
		for _, dep := range p.Deps {
			for _, m := range rule.modules {
				if strings.HasPrefix(dep, m) {
					bad = append(bad, dep)
				}
			}
		}
	}
	return bad
}

func TestImportRules(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, bad := range forbiddenImports(p) {
			t.Errorf("%s must not import %s (DESIGN.md section 4)", p.room(), bad)
		}
		for _, bad := range forbiddenLinks(p) {
			t.Errorf("%s must not be linked with %s", p.room(), bad)
		}
	}
}

// TestParityInOneRoom: who computes parity is one package.
func TestParityInOneRoom(t *testing.T) {
	for _, p := range listPackages(t) {
		if slices.Contains(p.Imports, "github.com/klauspost/reedsolomon") && p.room() != "chunkstore/backend/spread" {
			t.Errorf("%s computes parity: only chunkstore/backend/spread does", p.room())
		}
	}
}

// TestImportRulesCatch shows the rules packages that break them.
func TestImportRulesCatch(t *testing.T) {
	for _, c := range []struct {
		room, imports, links string
		want                 bool
	}{
		{room: "chunkstore/gc", imports: "index", want: true},
		{room: "chunkstore/gc", imports: "chunkstore/pack"},
		{room: "chunkstore/chunk", imports: "chunkstore/seal", want: true},
		{room: "chunkstore/backend/local", imports: "chunkstore/pack", want: true},
		{room: "chunkstore/backend/local", imports: "chunkstore/backend"},
		{room: "fs", imports: "index", want: true},
		{room: "fs", imports: "guest/ext4", want: true},
		{room: "fs", imports: "guest/volume"},
		{room: "guest/agent", imports: "qmp", want: true},
		{room: "guest/ext4", imports: "guest/filesystem"},
		{room: "qmp/nbd", imports: "qmp", want: true},
		{room: "cmd/internal/job", imports: "fs", want: true},
		{room: "cmd/internal/job", imports: "cmd/internal/cli", want: true},
		{room: "index", imports: "cmd/internal/job", want: true},
		{room: "index/restorepoint", imports: "index", want: true},
		{room: "newroom", want: true},
		{room: "cmd/cairn-agent", links: "github.com/dgraph-io/badger/v4", want: true},
		{room: "guest/agent", links: "github.com/digitalocean/go-qemu/qmp", want: true},
		{room: "cmd/cairn", links: "github.com/dgraph-io/badger/v4"},
	} {
		p := goPackage{ImportPath: module + "/" + c.room, Imports: []string{"fmt", module + "/" + c.imports}, Deps: []string{c.links}}
		if c.imports == "" {
			p.Imports = nil
		}
		if got := len(forbiddenImports(p))+len(forbiddenLinks(p)) > 0; got != c.want {
			t.Errorf("%s with %q and %q: broken %v, want %v", c.room, c.imports, c.links, got, c.want)
		}
	}
}

func TestEveryPackageHasADoc(t *testing.T) {
	for _, p := range listPackages(t) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, "doc.go"), nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Errorf("%s: %v", p.room(), err)
			continue
		}
		if f.Doc == nil || len(f.Doc.Text()) < 40 {
			t.Errorf("%s: doc.go says nothing", p.room())
		}
	}
}

// TestPackageNames refuses names that say nothing about what is inside.
func TestPackageNames(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, bad := range []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base"} {
			if path.Base(p.ImportPath) == bad || p.Name == bad {
				t.Errorf("%s: a package is not called %s", p.room(), bad)
			}
		}
	}
}

// TestNoInit: what happens at start happens in main, in an order one can read.
func TestNoInit(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, file := range parseFiles(t, p) {
			for _, where := range initFunctions(file.fset, file.ast) {
				t.Errorf("%s: init() is not used here", where)
			}
		}
	}
}

// TestOneFileMakesFiles: how an object becomes durable (temporary file, fsync,
// link, fsync of the directory) is written in one place of the store only.
func TestOneFileMakesFiles(t *testing.T) {
	var makers []string
	for _, p := range listPackages(t) {
		if !fits("chunkstore/...", p.room()) {
			continue
		}
		for _, file := range parseFiles(t, p) {
			calls := fileMakers(file.fset, file.ast)
			if len(calls) == 0 {
				continue
			}
			makers = append(makers, file.name)
			if p.room() != "chunkstore/backend/local" {
				t.Errorf("%s: only chunkstore/backend/local makes files", calls[0])
			}
		}
	}
	if len(makers) > 1 {
		t.Errorf("files are made in %s: want one file for that", strings.Join(makers, ", "))
	}
}

func TestSourceRulesCatch(t *testing.T) {
	const source = `package x
import ( "os"; file "os" )
func init() {}
func (t T) init() {}
func a() { os.Rename("a", "b"); file.WriteFile("a", nil, 0); os.Open("a"); other.Create("x") }
`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "x.go", source, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := initFunctions(fset, f); len(got) != 1 {
		t.Errorf("init functions %q, want one", got)
	}
	if got := fileMakers(fset, f); len(got) != 2 {
		t.Errorf("calls that make files %q, want two", got)
	}
}

func initFunctions(fset *token.FileSet, f *ast.File) []string {
	var found []string
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			found = append(found, fset.Position(fn.Pos()).String())
		}
	}
	return found
}

// fileMakers returns the uses of os.Rename, os.Create and os.WriteFile, also
// when os was imported by another name.
func fileMakers(fset *token.FileSet, f *ast.File) []string {
	names := make(map[string]bool)
	for _, imp := range f.Imports {
		if p, err := strconv.Unquote(imp.Path.Value); err != nil || p != "os" {
			continue
		}
		if imp.Name != nil {
			names[imp.Name.Name] = true
		} else {
			names["os"] = true
		}
	}
	var found []string
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && names[x.Name] && slices.Contains([]string{"Rename", "Create", "WriteFile"}, sel.Sel.Name) {
			found = append(found, fmt.Sprintf("%s: os.%s", fset.Position(sel.Pos()), sel.Sel.Name))
		}
		return true
	})
	return found
}

type sourceFile struct {
	name string
	fset *token.FileSet
	ast  *ast.File
}

func parseFiles(t *testing.T, p goPackage) []sourceFile {
	t.Helper()
	var files []sourceFile
	for _, name := range p.GoFiles {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, sourceFile{name: path.Join(p.room(), name), fset: fset, ast: f})
	}
	return files
}

// listPackages asks the go command for every package of the module.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Name,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,Deps", "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles)+len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		t.Fatal("go list found no package")
	}
	return all
}
