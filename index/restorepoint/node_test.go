package restorepoint

import (
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"cairn/chunkstore/chunk"
)

func ref(n byte) chunk.PackRef {
	return chunk.PackRef{Session: chunk.SessionID{n}, Hash: chunk.PackHash{n, 1}}
}

func TestNodesRoundTrip(t *testing.T) {
	l := &leaf{packs: []chunk.PackRef{ref(1), ref(2)}, runs: []run{{0, 1, 0, 77}, {5, 4000, 1, 1<<24 - 4000}, {4095, 1, 0, 0}}}
	got, err := decodeLeaf(encodeLeaf(l))
	if err != nil || !reflect.DeepEqual(got, l) {
		t.Errorf("leaf: got %+v, %v", got, err)
	}
	m, err := decodeMiddle(encodeMiddle([]child{{index: 0, self: true, record: 3}, {index: 7, pack: ref(4), record: 9}, {index: 255, pack: ref(4)}}), ref(5))
	want := map[int]nodeRef{0: {ref(5), 3}, 7: {ref(4), 9}, 255: {ref(4), 0}}
	if err != nil || !reflect.DeepEqual(m.leaves, want) {
		t.Errorf("middle: got %v, %v", m, err)
	}
}

// A node cut anywhere, or with bytes behind it, is an error.
func TestCutNodes(t *testing.T) {
	b := encodeLeaf(&leaf{packs: []chunk.PackRef{ref(1)}, runs: []run{{3, 400, 0, 7000}}})
	for n := range b {
		if _, err := decodeLeaf(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d: %v", n, err)
		}
	}
	if _, err := decodeLeaf(append(b, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("longer: %v", err)
	}
	if _, err := decodeMiddle(b, ref(1)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("leaf as middle: %v", err)
	}
}

func FuzzDecodeLeaf(f *testing.F) {
	f.Add(encodeLeaf(&leaf{packs: []chunk.PackRef{ref(1)}, runs: []run{{3, 400, 0, 7000}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLeaf(b)
		if err != nil {
			return
		}
		end := 0
		for _, r := range l.runs {
			if int(r.first) < end || int(r.pack) >= len(l.packs) || r.count == 0 {
				t.Fatalf("run %+v", r)
			}
			end = int(r.first) + int(r.count)
		}
		if end > leafChunks {
			t.Fatalf("end %d", end)
		}
	})
}

func FuzzDecodeMiddle(f *testing.F) {
	f.Add(encodeMiddle([]child{{index: 7, pack: ref(4), record: 9}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMiddle(b, ref(1))
		if err != nil {
			return
		}
		for i := range m.leaves {
			if i < 0 || i >= middleLeaves {
				t.Fatalf("child %d", i)
			}
		}
	})
}

// The nodes' bytes are part of the on-disk format: these were written by the
// first cairn of format 1.
func TestNodeBytesStayAsTheyAre(t *testing.T) {
	l := &leaf{packs: []chunk.PackRef{ref(1), ref(2)}, runs: []run{{0, 1, 0, 77}, {5, 4000, 1, 300}}}
	const hash = "000000000000000000000000000000" + "000000000000000000000000000000" // behind the two bytes that ref sets
	const wantLeaf = "0102" + "01000000000000000000000000000000" + "0101" + hash +
		"02000000000000000000000000000000" + "0201" + hash + "02" + "0000004d" + "049f1f01ac02"
	if got := hex.EncodeToString(encodeLeaf(l)); got != wantLeaf {
		t.Errorf("leaf:\n got %s\nwant %s", got, wantLeaf)
	}
	m := encodeMiddle([]child{{index: 1, self: true, record: 3}, {index: 7, pack: ref(4), record: 200}})
	const wantMiddle = "0201" + "04000000000000000000000000000000" + "0401" + hash + "02" + "010003" + "0501c801"
	if got := hex.EncodeToString(m); got != wantMiddle {
		t.Errorf("middle:\n got %s\nwant %s", got, wantMiddle)
	}
}
