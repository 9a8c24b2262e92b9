package guest

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func frames(t *testing.T, r io.Reader) (list []Frame) {
	t.Helper()
	fr := NewFrameReader(r)
	for {
		f, err := fr.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Payload = bytes.Clone(f.Payload)
		list = append(list, f)
	}
}

func sameFrame(a, b Frame) bool {
	return a.Type == b.Type && a.Last == b.Last && a.Session == b.Session && a.Call == b.Call && bytes.Equal(a.Payload, b.Payload)
}

func TestFrames(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxPayload/16)
	want := []Frame{
		{Type: FrameHello, Last: true, Session: 1},
		{Type: FrameData, Session: 1<<64 - 1, Call: 1<<32 - 1, Payload: big},
		{Type: FrameAnswer, Last: true, Session: 7, Call: 2, Payload: []byte("{}")},
	}
	var b []byte
	for _, f := range want {
		b = AppendFrame(b, f)
	}
	for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b))} {
		got := frames(t, r)
		if len(got) != len(want) {
			t.Fatalf("%d frames of %d", len(got), len(want))
		}
		for i := range want {
			if !sameFrame(got[i], want[i]) {
				t.Errorf("frame %d: %+v", i, got[i])
			}
		}
	}
}

// TestTornFrames: whatever a dead peer left in the channel, the frame that
// comes behind its successor's padding is found.
func TestTornFrames(t *testing.T) {
	torn := AppendFrame(nil, Frame{Type: FrameData, Session: 3, Payload: bytes.Repeat([]byte{frameMagic[0], 0x17, 0x6e, 0x01}, 2000)})
	hello := Frame{Type: FrameHello, Last: true, Session: 9, Payload: []byte("hello")}
	for cut := 0; cut < len(torn); cut += 1 + cut/7 {
		b := AppendFrame(AppendPadding(bytes.Clone(torn[:cut])), hello)
		got := frames(t, bytes.NewReader(b))
		if len(got) != 1 || !sameFrame(got[0], hello) {
			t.Fatalf("cut at %d: %d frames", cut, len(got))
		}
	}
}

// TestDamagedFrames: a frame with any bit changed is none, and hides no other.
func TestDamagedFrames(t *testing.T) {
	first := AppendFrame(nil, Frame{Type: FrameAnswer, Session: 3, Call: 1, Payload: []byte("some payload")})
	next := Frame{Type: FrameAnswer, Last: true, Session: 3, Call: 2, Payload: []byte("next")}
	for bit := range len(first) * 8 {
		b := bytes.Clone(first)
		b[bit/8] ^= 1 << (bit % 8)
		got := frames(t, bytes.NewReader(AppendFrame(AppendFrame(b, next), next)))
		if len(got) != 2 || !sameFrame(got[0], next) {
			t.Fatalf("bit %d: %+v", bit, got)
		}
	}
}

func TestMessage(t *testing.T) {
	for _, n := range []int{0, 1, MaxPayload, MaxPayload + 1, 5*MaxPayload - 3} {
		payload := bytes.Repeat([]byte{7}, n)
		var got []byte
		list := frames(t, bytes.NewReader(AppendMessage(nil, Frame{Type: FrameAnswer, Session: 1, Call: 1, Payload: payload})))
		for i, f := range list {
			if got = append(got, f.Payload...); f.Last != (i == len(list)-1) {
				t.Errorf("%d bytes: frame %d of %d: last %v", n, i, len(list), f.Last)
			}
		}
		if !bytes.Equal(got, payload) {
			t.Errorf("%d bytes became %d", n, len(got))
		}
	}
}

func FuzzFrameReader(f *testing.F) {
	whole := AppendFrame(nil, Frame{Type: FrameAnswer, Last: true, Session: 3, Call: 1, Payload: []byte("payload")})
	f.Add(whole)
	f.Add(append(bytes.Clone(whole[:20]), whole...))
	f.Add(AppendFrame(AppendPadding(nil), Frame{Type: FrameHello}))
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := 0
		r := NewFrameReader(bytes.NewReader(b))
		for {
			got, err := r.Next()
			if err != nil {
				break
			}
			sum += frameHeader + len(got.Payload)
		}
		if int64(sum)+r.Skipped > int64(len(b)) {
			t.Fatalf("%d bytes of frames and %d skipped out of %d", sum, r.Skipped, len(b))
		}
		// Whatever it was, a frame behind padding is found.
		want := Frame{Type: FrameHello, Last: true, Session: 5, Payload: []byte("x")}
		all := frames(t, bytes.NewReader(AppendFrame(AppendPadding(b), want)))
		if len(all) == 0 || !sameFrame(all[len(all)-1], want) {
			t.Fatal("the frame behind the padding is lost")
		}
	})
}
