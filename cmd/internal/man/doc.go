// Package man writes manual pages out of a tree of cobra commands: one page a
// command, cairn-key-add(1) for `cairn key add`, in man(7)'s macros.
//
// cobra/doc does the same by way of Markdown and two more modules; help texts
// of ours are no Markdown: their indented lines are tables, and stay as they
// are.
//
// The same tree and book give the same bytes.
package man
