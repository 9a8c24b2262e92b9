package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// Features says what a QEMU can do. It is read from query-qmp-schema, never
// from the version: distributions backport.
type Features struct {
	Transaction      bool // several block commands at one instant
	BitmapMerge      bool // block-dirty-bitmap-merge, -disable, persistent bitmaps (4.0)
	BlockExportAdd   bool // block-export-add (5.2)
	CopyBeforeWrite  bool // the copy-before-write filter (6.2)
	SnapshotAccess   bool // the snapshot-access driver (7.0)
	OnCBWError       bool // on-cbw-error and cbw-timeout: a bad scratch never fails the guest's write (7.1)
	ExportBitmapNode bool // an export's bitmap may lie on another node (7.1)
	QOMSet           bool // qom-set, which puts the filter under a running device
	BlockGraph       bool // x-debug-query-block-graph: what lies below a filter now
	// NBDClientSafe: the end of an NBD client does not abort QEMU when the
	// disk is on an iothread. The mending (nbd/server: only traverse
	// NBDExport->clients from main loop thread, 9.0) shows in no schema;
	// block-commit's backing-mask-protocol came with the same release. A
	// mended older QEMU is taken for an unmended one, which costs speed only.
	NBDClientSafe bool
}

// Missing lists in plain words what a backup needs and this QEMU lacks.
func (f Features) Missing() []string {
	var missing []string
	for _, need := range []struct {
		has  bool
		what string
	}{
		{f.Transaction, "transactions of block commands"},
		{f.BitmapMerge, "persistent dirty bitmaps that can be merged (QEMU 4.0)"},
		{f.BlockExportAdd, "block-export-add (QEMU 5.2)"},
		{f.CopyBeforeWrite, "the copy-before-write filter (QEMU 6.2)"},
		{f.SnapshotAccess, "the snapshot-access driver (QEMU 7.0)"},
		{f.OnCBWError, "on-cbw-error=break-snapshot, which keeps a full scratch space from failing the guest's writes (QEMU 7.1)"},
		{f.ExportBitmapNode, "exports of a bitmap that lies on another node (QEMU 7.1)"},
		{f.QOMSet, "qom-set"},
		{f.BlockGraph, "x-debug-query-block-graph (QEMU 4.0)"},
	} {
		if !need.has {
			missing = append(missing, need.what)
		}
	}
	return missing
}

// entity is one entry of the schema, docs/devel/qapi-code-gen.rst, "Client
// JSON Protocol introspection". Type names are masked, so that only the path
// from a command leads to them.
type entity struct {
	Name     string `json:"name"`
	MetaType string `json:"meta-type"`
	ArgType  string `json:"arg-type"`
	Members  []struct {
		Name string `json:"name"`
		Type string `json:"type"`
	} `json:"members"`
	Variants []struct {
		Case string `json:"case"`
		Type string `json:"type"`
	} `json:"variants"`
	ElementType string `json:"element-type"`
}

// features asks QEMU for its schema.
func features(ctx context.Context, conn *Conn) (Features, error) {
	var raw json.RawMessage
	if err := conn.run(ctx, queryQMPSchema{}, &raw); err != nil {
		return Features{}, err
	}
	return parseSchema(raw)
}

func parseSchema(raw []byte) (Features, error) {
	var list []entity
	if err := json.Unmarshal(raw, &list); err != nil {
		return Features{}, fmt.Errorf("qmp: query-qmp-schema: %w", err)
	}
	s := make(schema, len(list))
	for _, e := range list {
		s[e.Name] = e
	}
	add := s.argument("blockdev-add")
	cbw := s.variant(add, "copy-before-write")
	bitmaps := s.member(s.variant(s.argument("block-export-add"), "nbd"), "bitmaps")
	return Features{
		Transaction:      s.has("transaction"),
		BitmapMerge:      s.has("block-dirty-bitmap-merge") && s.has("block-dirty-bitmap-disable"),
		BlockExportAdd:   s.has("block-export-add"),
		CopyBeforeWrite:  cbw != "",
		SnapshotAccess:   s.variant(add, "snapshot-access") != "",
		OnCBWError:       s.member(cbw, "on-cbw-error") != "" && s.member(cbw, "cbw-timeout") != "",
		ExportBitmapNode: s[s[bitmaps].ElementType].MetaType == "alternate",
		QOMSet:           s.has("qom-set"),
		BlockGraph:       s.has("x-debug-query-block-graph"),
		NBDClientSafe:    s.member(s.argument("block-commit"), "backing-mask-protocol") != "",
	}, nil
}

type schema map[string]entity

func (s schema) has(command string) bool { return s[command].MetaType == "command" }

func (s schema) argument(command string) string { return s[command].ArgType }

// variant gives the type of a union's branch, "" if there is none.
func (s schema) variant(union, branch string) string {
	for _, v := range s[union].Variants {
		if v.Case == branch {
			return v.Type
		}
	}
	return ""
}

// member gives the type of an object's member, "" if there is none.
func (s schema) member(object, name string) string {
	for _, m := range s[object].Members {
		if m.Name == name {
			return m.Type
		}
	}
	return ""
}

// Supported gives an error that wraps ErrFeature and names all that is missing
// for a backup, nil if nothing is.
func (m *Machine) Supported() error {
	missing := m.Features.Missing()
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("qmp: QEMU %s: %w: %s", m.Version, ErrFeature, strings.Join(missing, "; "))
}
