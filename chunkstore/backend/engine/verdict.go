package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"cairn/chunkstore/backend"
)

// Prefix of the objects of this package. Part of the on-disk format.
const Prefix = "engine/"

// maxVerdict bounds a stored verdict in bytes.
const maxVerdict = 256 << 10

// State is what was found of one property.
type State string

// The states. Stored: do not change.
const (
	Good State = "ok"
	Note State = "note" // good to know; nothing is lost by it
	Bad  State = "bad"  // data can be lost by it
)

// Names of findings that callers ask for. Stored: do not change.
const (
	CreateOnly = "create-only"
	Deleting   = "delete"
)

// Finding is one property of a place.
type Finding struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	Text  string `json:"text"`
}

// Verdict is what a check found. Part of the on-disk format, in the clear:
// fields are only added.
type Verdict struct {
	Version  int       `json:"version"`
	Time     time.Time `json:"time"` // of the host that checked: a label
	Findings []Finding `json:"findings"`
	Left     int       `json:"left"` // objects that could not be removed
}

const verdictVersion = 1

// Good says whether nothing bad was found.
func (v *Verdict) Good() bool {
	for _, f := range v.Findings {
		if f.State == Bad {
			return false
		}
	}
	return true
}

// State gives the worst of what was found of a property, which may have been
// looked at in several ways; Bad if it was not looked at.
func (v *Verdict) State(name string) State {
	var worst State
	for _, f := range v.Findings {
		if f.Name == name && (worst == "" || f.State == Bad || f.State == Note && worst == Good) {
			worst = f.State
		}
	}
	return cmp.Or(worst, Bad)
}

// Reasons gives what is bad, in one line.
func (v *Verdict) Reasons() string {
	var out []string
	for _, f := range v.Findings {
		if f.State == Bad {
			out = append(out, f.Name+": "+f.Text)
		}
	}
	return strings.Join(out, "; ")
}

// ErrNoVerdict: the place was never checked.
var ErrNoVerdict = errors.New("the place was never checked")

// Store keeps a verdict in b, as the next one there of the place with that ID;
// "" is b itself.
func Store(ctx context.Context, b backend.Backend, place string, v *Verdict) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	for {
		n, err := last(ctx, b, place)
		if err != nil {
			return err
		}
		if err = b.Put(ctx, name(place, n+1), body); !errors.Is(err, backend.ErrExist) {
			return err
		}
	}
}

// Last gives the last verdict that b keeps of the place with that ID, or
// ErrNoVerdict; "" is b itself.
func Last(ctx context.Context, b backend.Backend, place string) (*Verdict, error) {
	n, err := last(ctx, b, place)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, ErrNoVerdict
	}
	body, err := backend.Get(ctx, b, name(place, n), maxVerdict)
	if err != nil {
		return nil, err
	}
	v := new(Verdict)
	if err := json.Unmarshal(body, v); err != nil || v.Version != verdictVersion {
		return nil, fmt.Errorf("%s: it is no verdict that this cairn reads", name(place, n))
	}
	return v, nil
}

// name gives the n-th verdict's object name, in an order that a listing has.
func name(place string, n int) string { return fmt.Sprintf("%s%08d", folder(place), n) }

// folder is where the verdicts of a place are.
func folder(place string) string {
	if place == "" {
		return Prefix
	}
	return Prefix + place + "/"
}

// last gives the number of the last verdict; 0 if there is none.
func last(ctx context.Context, b backend.Backend, place string) (n int, err error) {
	err = b.List(ctx, folder(place), func(o backend.Object) error {
		if i, err := strconv.Atoi(strings.TrimPrefix(o.Name, folder(place))); err == nil && i > n && o.Name == name(place, i) {
			n = i
		}
		return nil
	})
	return n, err
}
