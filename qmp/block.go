package qmp

import (
	"context"
	"fmt"
	"strings"
)

// blockState is what QEMU says about its block devices and nodes at one time.
type blockState struct {
	devices []blockDevice
	nodes   map[string]blockNode
	graph   graph
	jobs    map[string]string // node: the block job that works on it
}

// blockDevice is an entry of query-block.
type blockDevice struct {
	Device    string     `json:"device"` // id of a legacy -drive, or ""
	QDev      string     `json:"qdev"`   // id or path of the guest's device, or ""
	Removable bool       `json:"removable"`
	Inserted  *blockNode `json:"inserted"`
}

// blockNode is an entry of query-named-block-nodes, or query-block's "inserted".
type blockNode struct {
	Node    string     `json:"node-name"`
	Driver  string     `json:"drv"`
	RO      bool       `json:"ro"`
	File    string     `json:"file"`
	Image   imageInfo  `json:"image"`
	Bitmaps []struct { // jobs have some without a name
		Name         string `json:"name"`
		Count        int64  `json:"count"`
		Granularity  int64  `json:"granularity"`
		Recording    bool   `json:"recording"`
		Busy         bool   `json:"busy"`
		Persistent   bool   `json:"persistent"`
		Inconsistent bool   `json:"inconsistent"`
	} `json:"dirty-bitmaps"`
}

type imageInfo struct {
	Filename       string     `json:"filename"`
	Format         string     `json:"format"`
	VirtualSize    int64      `json:"virtual-size"`
	Backing        *imageInfo `json:"backing-image"`
	DirtyFlag      bool       `json:"dirty-flag"` // qcow2: not closed, its reference counts are to be repaired
	FormatSpecific struct {
		Data struct {
			Compat  string `json:"compat"` // qcow2: "0.10" is version 2, "1.1" is version 3
			Corrupt bool   `json:"corrupt"`
		} `json:"data"`
	} `json:"format-specific"`
}

// graph gives a node's child by its role: graph["vda"]["file"].
type graph map[string]map[string]string

func readBlockState(ctx context.Context, conn *Conn) (*blockState, error) {
	s := &blockState{nodes: map[string]blockNode{}}
	if err := conn.run(ctx, queryBlock{}, &s.devices); err != nil {
		return nil, err
	}
	var nodes []blockNode
	if err := conn.run(ctx, queryNamedNodes{}, &nodes); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		s.nodes[n.Node] = n
	}
	return s, s.readGraph(ctx, conn)
}

func (s *blockState) readGraph(ctx context.Context, conn *Conn) error {
	var raw struct {
		Nodes []struct {
			ID   uint64 `json:"id"`
			Name string `json:"name"`
			Type string `json:"type"` // "block-driver", "block-backend", "block-job"
		} `json:"nodes"`
		Edges []struct {
			Name   string `json:"name"`
			Parent uint64 `json:"parent"`
			Child  uint64 `json:"child"`
		} `json:"edges"`
	}
	if err := conn.run(ctx, queryBlockGraph{}, &raw); err != nil {
		return err
	}
	names, jobs := map[uint64]string{}, map[uint64]string{}
	for _, n := range raw.Nodes {
		switch n.Type {
		case "block-driver":
			names[n.ID] = n.Name
		case "block-job":
			jobs[n.ID] = n.Name
		}
	}
	g := graph{}
	s.graph, s.jobs = g, map[string]string{}
	for _, e := range raw.Edges {
		parent, child := names[e.Parent], names[e.Child]
		if job := jobs[e.Parent]; job != "" && child != "" {
			s.jobs[child] = job
		}
		if parent == "" || child == "" {
			continue
		}
		if g[parent] == nil {
			g[parent] = map[string]string{}
		}
		g[parent][e.Name] = child
	}
	return nil
}

// foreignJob gives another program's job on a node or on what lies below it,
// "" for none. QEMU hides the filters of most jobs: taking the device from such
// a filter would take the job's writes from it.
func (s *blockState) foreignJob(node string) string {
	for range maxDepth {
		if job := s.jobs[node]; job != "" && !numbered(job, prefixJob) {
			return job
		}
		below := s.graph[node]["backing"]
		if below == "" {
			below = s.graph[node]["file"]
		}
		if below == "" {
			break
		}
		node = below
	}
	return ""
}

// maxDepth bounds the walk along a chain of nodes or images.
const maxDepth = 256

// belowOurs gives the node below filters of ours.
func (s *blockState) belowOurs(node string) string {
	for range maxDepth {
		if !isOurNode(node) || s.graph[node]["file"] == "" {
			break
		}
		node = s.graph[node]["file"]
	}
	return node
}

// belowFilters gives the first node below filters of any owner: the one that
// has the disk's format, and its bitmaps. filter is the driver of the last
// filter on the way, "" if there is none.
func (s *blockState) belowFilters(node string) (format, filter string) {
	for range maxDepth {
		driver := s.nodes[node].Driver
		child := s.graph[node]["file"]
		if driver == "mirror_top" || driver == "commit_top" || driver == "backup-top" {
			child = s.graph[node]["backing"] + s.graph[node]["file"] // they have one of them
		} else if driver != "copy-before-write" && driver != "throttle" && driver != "copy-on-read" && driver != "preallocate" && driver != "compress" {
			return node, filter
		}
		if child == "" {
			return node, driver
		}
		node, filter = child, driver
	}
	return node, filter
}

// chain gives the file names of an image and what lies below, top first.
func (i *imageInfo) chain() []string {
	var names []string
	for n := 0; i != nil && n < maxDepth; n++ {
		names = append(names, i.Filename)
		i = i.Backing
	}
	return names
}

// objectPath gives what qom-set takes for query-block's qdev: a bare id fails
// for some devices ("Device 's0' not found" for nvme).
func objectPath(qdev string) string {
	if qdev == "" || strings.HasPrefix(qdev, "/") {
		return qdev
	}
	return "/machine/peripheral/" + qdev
}

// qomString reads a string property; a device without it gives "".
func qomString(ctx context.Context, conn *Conn, path, property string) (string, error) {
	var v any
	err := conn.run(ctx, qomGet{path, property}, &v)
	if isRefusal(err) {
		return "", nil
	}
	s, _ := v.(string)
	return s, err
}

// qomChildren lists the children of an object: name to type.
func qomChildren(ctx context.Context, conn *Conn, path string) (map[string]string, error) {
	var list []struct {
		Name string `json:"name"`
		Type string `json:"type"`
	}
	if err := conn.run(ctx, qomList{path}, &list); err != nil {
		if isRefusal(err) {
			return nil, nil // a machine without that container
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	children := map[string]string{}
	for _, p := range list {
		if kind, ok := strings.CutPrefix(p.Type, "child<"); ok {
			children[p.Name] = strings.TrimSuffix(kind, ">")
		}
	}
	return children, nil
}
