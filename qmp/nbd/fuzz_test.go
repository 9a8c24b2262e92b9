package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// scripted is a connection whose server said everything beforehand.
type scripted struct{ io.Reader }

func (scripted) Write(b []byte) (int, error)      { return len(b), nil }
func (scripted) Close() error                     { return nil }
func (scripted) LocalAddr() net.Addr              { return nil }
func (scripted) RemoteAddr() net.Addr             { return nil }
func (scripted) SetDeadline(time.Time) error      { return nil }
func (scripted) SetReadDeadline(time.Time) error  { return nil }
func (scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzReplies lets the server answer two reads and a block status with any
// bytes. No call may succeed unless all of its bytes came, and nothing may be
// written outside of the buffers.
func FuzzReplies(f *testing.F) {
	u64, u32 := binary.BigEndian.AppendUint64, binary.BigEndian.AppendUint32
	f.Add(chunk(1, chunkOffsetData, 1, 8+16, u64(nil, 64), make([]byte, 16)), true)
	f.Add(append(chunk(0, chunkOffsetHole, 2, 12, u32(u64(nil, 128), 32)), chunk(1, chunkNone, 2, 0)...), true)
	f.Add(chunk(1, chunkBlockStatus, 3, 12, u32(u32(u32(nil, 7), 4096), 1)), true)
	f.Add(chunk(1, 1<<15+1, 1, 8, u32(nil, 22), []byte{0, 2, 'n', 'o'}), true)
	f.Add(append(u64(u32(u32(nil, magicSimple), 0), 1), make([]byte, 16)...), false)
	f.Add(u64(u32(u32(nil, magicSimple), 5), 3), false)
	f.Fuzz(func(t *testing.T, replies []byte, structured bool) {
		c := newConn(scripted{bytes.NewReader(replies)}, Dialer{}.withDefaults())
		c.size, c.structured, c.contexts = 1<<20, structured, map[string]uint32{"x": 7}
		const guard = 0x5a
		room := bytes.Repeat([]byte{guard}, 16+32+3*8)
		calls := []*call{
			{command: cmdRead, offset: 64, length: 16, buf: room[8:24]},
			{command: cmdRead, offset: 128, length: 32, buf: room[32:64]},
			{command: cmdBlockStatus, offset: 4096, length: 8192, context: 7},
		}
		for i, cl := range calls {
			cl.done = make(chan struct{})
			c.slots <- struct{}{}
			c.pending[uint64(i+1)] = cl
		}
		c.readReplies()
		for _, cl := range calls {
			<-cl.done
			if cl.err == nil && cl.command == cmdRead && !cl.covered.whole(cl.length) {
				t.Errorf("read at %d succeeded with a part of its bytes", cl.offset)
			}
			if len(cl.status) > len(replies)+statusStep {
				t.Errorf("%d bytes of status out of %d", len(cl.status), len(replies))
			}
		}
		for _, r := range [][]byte{room[:8], room[24:32], room[64:]} {
			if len(bytes.Trim(r, string(rune(guard)))) > 0 {
				t.Fatal("bytes outside of the buffers were written")
			}
		}
		if len(c.slots) != 0 {
			t.Errorf("%d slots are still taken", len(c.slots))
		}
	})
}

// FuzzHandshake lets the server say anything during the handshake.
func FuzzHandshake(f *testing.F) {
	be := binary.BigEndian
	greeting := be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, magicInit), magicOption), 3)
	reply := func(option, typ uint32, data []byte) []byte {
		b := be.AppendUint32(be.AppendUint64(nil, magicOptionReply), option)
		return append(be.AppendUint32(be.AppendUint32(b, typ), uint32(len(data))), data...)
	}
	export := be.AppendUint16(be.AppendUint64(be.AppendUint16(nil, infoExport), 1<<20), 1)
	blocks := be.AppendUint32(be.AppendUint32(be.AppendUint32(be.AppendUint16(nil, infoBlockSize), 512), 4096), 32<<20)
	f.Add(bytes.Join([][]byte{greeting, reply(8, repAck, nil),
		reply(10, repMetaContext, append([]byte{0, 0, 0, 7}, BaseAllocation...)), reply(10, repAck, nil),
		reply(7, repInfo, export), reply(7, repInfo, blocks), reply(7, repAck, nil)}, nil))
	f.Add(bytes.Join([][]byte{greeting, reply(8, repErrUnsup, []byte("no"))}, nil))
	f.Fuzz(func(t *testing.T, said []byte) {
		c := newConn(scripted{bytes.NewReader(said)}, Dialer{}.withDefaults())
		err := c.handshake("disk", []string{BaseAllocation})
		if err != nil {
			return
		}
		if _, ok := c.contexts[BaseAllocation]; !ok || !c.structured || c.size < 0 || c.minBlock < 1 || c.maxRequest < c.minBlock || c.maxRequest > maxRequestBytes {
			t.Errorf("handshake succeeded with %+v", c)
		}
	})
}

func TestDialAfterGarbage(t *testing.T) {
	c := newConn(scripted{bytes.NewReader(make([]byte, 64))}, Dialer{}.withDefaults())
	if err := c.handshake("x", nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v, want ErrProtocol", err)
	}
}
