package guest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"

	"cairn/guest/object"
)

// The protocol between cairn and cairn-agent, version 1.
//
// The channel is a virtio-serial port: a stream of bytes without sessions. What
// a dead peer left in it, half a frame for one, comes before what its successor
// writes. So:
//
//   - Everything is in frames with a magic number, a check sum of the header,
//     one of the payload, and the number of the session. A reader that meets
//     anything else looks for the next frame.
//   - The host begins a session with a hello that has a new random number, and
//     padding before it that completes whatever frame was torn. The agent ends
//     the session before, whatever that was doing (what was frozen is thawed),
//     and answers with a welcome of the same number. Frames of other sessions
//     are dropped.
//   - In a session the host asks one question at a time (a call), and the agent
//     answers it or says what is wrong. A call may carry a stream of data from
//     the host to the agent; the agent grants how much may be under way.
//   - Both sides bound what they take and how long they wait.
//
// # Frame
//
// All numbers are little-endian.
//
//	 0  4  magic ca 17 6e 01
//	 4  1  type
//	 5  1  flags: 1 = the last frame of its message
//	 6  2  zero
//	 8  8  session
//	16  4  number of the call in the session, from 1; 0 for hello and welcome
//	20  4  length of the payload, at most 32 KiB
//	24  4  CRC-32C of the payload
//	28  4  CRC-32C of bytes 0 to 28
//	32     payload
const (
	frameHeader = 32
	// MaxPayload is the most that one frame carries, bytes.
	MaxPayload = 32 << 10
	// ProtocolVersion is this protocol's. A peer that speaks no version of the
	// other's range says so in the welcome.
	ProtocolVersion = 1
)

var frameMagic = [4]byte{0xca, 0x17, 0x6e, 0x01}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// FrameType says what a frame is.
type FrameType uint8

// Types of frames, and who sends them.
const (
	FrameHello   FrameType = 1 // host: begins a session; Hello
	FrameWelcome FrameType = 2 // agent: answers it; Welcome
	FrameCall    FrameType = 3 // host: Call
	FrameAnswer  FrameType = 4 // agent: the result of a call, in its own JSON
	FrameError   FrameType = 5 // agent: the call failed; CallError
	FrameData    FrameType = 6 // host: a piece of a call's stream; the last one may be empty
	FrameGrant   FrameType = 7 // agent: 4 bytes: so many more bytes of the stream may be sent
)

// Frame is one frame.
type Frame struct {
	Type    FrameType
	Last    bool // the last frame of its message
	Session uint64
	Call    uint32
	Payload []byte
}

const flagLast = 1

// AppendFrame appends a frame's bytes. The payload must fit.
func AppendFrame(b []byte, f Frame) []byte {
	if len(f.Payload) > MaxPayload {
		panic(fmt.Sprintf("internal error: a payload of %d bytes", len(f.Payload)))
	}
	start := len(b)
	b = append(b, frameMagic[:]...)
	flags := byte(0)
	if f.Last {
		flags = flagLast
	}
	b = append(b, byte(f.Type), flags, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, f.Session)
	b = binary.LittleEndian.AppendUint32(b, f.Call)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(f.Payload, castagnoli))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	return append(b, f.Payload...)
}

// AppendMessage appends as many frames as a payload of any length needs.
func AppendMessage(b []byte, f Frame) []byte {
	rest := f.Payload
	for {
		f.Payload = rest[:min(len(rest), MaxPayload)]
		rest = rest[len(f.Payload):]
		f.Last = len(rest) == 0
		b = AppendFrame(b, f)
		if f.Last {
			return b
		}
	}
}

// AppendPadding appends what completes any frame that was torn before it, and
// is no frame itself. It goes before a hello and a welcome.
func AppendPadding(b []byte) []byte { return append(b, make([]byte, frameHeader+MaxPayload)...) }

// FrameReader finds the frames in a stream of bytes.
type FrameReader struct {
	r *bufio.Reader
	// Skipped counts the bytes that were in no frame.
	Skipped int64
	// Limit is how many these may be; 0: any number.
	Limit int64
}

// NewFrameReader reads frames from r.
func NewFrameReader(r io.Reader) *FrameReader {
	return &FrameReader{r: bufio.NewReaderSize(r, 2*(frameHeader+MaxPayload))}
}

// Next gives the next whole frame. Its payload is valid until the next call.
// The error is r's, or ErrBadAnswer when more bytes than the limit were in no
// frame.
func (f *FrameReader) Next() (Frame, error) {
	for {
		if f.Limit > 0 && f.Skipped > f.Limit {
			return Frame{}, fmt.Errorf("%w: %d bytes that are no frame", ErrBadAnswer, f.Skipped)
		}
		head, err := f.r.Peek(frameHeader)
		if err != nil {
			return Frame{}, err
		}
		if !bytes.Equal(head[:4], frameMagic[:]) {
			f.skipToMagic()
			continue
		}
		frame, length, ok := parseHeader(head)
		if !ok {
			f.skip(1)
			continue
		}
		whole, err := f.r.Peek(frameHeader + length)
		if err != nil {
			return Frame{}, err
		}
		frame.Payload = whole[frameHeader:]
		if crc32.Checksum(frame.Payload, castagnoli) != binary.LittleEndian.Uint32(whole[24:]) {
			f.skip(1)
			continue
		}
		// The payload stays where it is until the buffer is read from again.
		f.discard(frameHeader + length)
		return frame, nil
	}
}

func parseHeader(head []byte) (f Frame, length int, ok bool) {
	le := binary.LittleEndian
	n := le.Uint32(head[20:])
	if crc32.Checksum(head[:28], castagnoli) != le.Uint32(head[28:]) || n > MaxPayload {
		return Frame{}, 0, false
	}
	return Frame{Type: FrameType(head[4]), Last: head[5]&flagLast != 0, Session: le.Uint64(head[8:]), Call: le.Uint32(head[16:])}, int(n), true
}

// skipToMagic skips what is buffered up to the next magic number, or to where
// one may begin.
func (f *FrameReader) skipToMagic() {
	buffered, _ := f.r.Peek(f.r.Buffered()) // they are there
	i := bytes.Index(buffered[1:], frameMagic[:])
	if i < 0 {
		i = len(buffered) - len(frameMagic)
	}
	f.skip(1 + i)
}

func (f *FrameReader) skip(n int) {
	f.Skipped += int64(n)
	f.discard(n)
}

func (f *FrameReader) discard(n int) { _, _ = f.r.Discard(n) } // they were peeked at

// Hello begins a session.
type Hello struct {
	MinVersion int    `json:"min_version"`
	MaxVersion int    `json:"max_version"`
	Host       string `json:"host,omitempty"`  // for the agent's log
	Cairn      string `json:"cairn,omitempty"` // version of the program
}

// Welcome is the agent's answer to a hello.
type Welcome struct {
	Version  int      `json:"version"` // of the protocol, for this session; 0: Refused says why there is none
	Refused  string   `json:"refused,omitempty"`
	Agent    string   `json:"agent"` // version of the program
	OS       string   `json:"os"`    // GOOS
	Hostname string   `json:"hostname,omitempty"`
	BootID   string   `json:"boot_id,omitempty"`
	Can      []string `json:"can"` // calls that this agent takes
	// Ended says how the session before ended, if it had left something to undo:
	// for the host's log.
	Ended string `json:"ended,omitempty"`
}

// Call asks for something.
type Call struct {
	Name       string          `json:"name"`
	DeadlineMS int64           `json:"deadline_ms"` // the host waits so long for the answer; it is of no use after
	Stream     bool            `json:"stream,omitempty"`
	Args       json.RawMessage `json:"args,omitempty"`
}

// CallError says why a call failed.
type CallError struct {
	Code    string `json:"code"` // one of the Code constants
	Message string `json:"message"`
}

// Codes of a CallError. An unknown one is a failure.
const (
	CodeFailed      = "failed"
	CodeUnsupported = "unsupported" // this agent, or this guest, cannot do it
	CodeInvalid     = "invalid"     // the arguments make no sense
	CodeDeadline    = "deadline"    // it took too long, and was undone
	CodeNoSpace     = "no-space"
	CodeExists      = "exists"
	CodeNotFound    = "not-found"
	CodeBusy        = "busy"
)

func (e *CallError) Error() string { return "the inside agent: " + e.Message }

// Names of the calls, with their arguments and results.
const (
	CallPing    = "ping"    // nothing → nothing
	CallStatus  = "status"  // nothing → Status
	CallPrepare = "prepare" // Prepare → Prepared
	CallFreeze  = "freeze"  // Freeze → FreezeAnswer
	CallThaw    = "thaw"    // nothing → Thawn; may be asked at any time
	CallFetch   = "fetch"   // nothing → the document's bytes, after the freeze
	CallPut     = "put"     // Put and a stream → PutResult
	CallStop    = "stop"    // Serve → Served: stops an object's service before a restore
	CallStart   = "start"   // Serve → Served: starts it again
)

// Prepare announces a point.
type Prepare struct {
	Point   string   `json:"point"`             // ID of the restore point in the making
	Objects []string `json:"objects,omitempty"` // names or globs (path.Match) of the objects that are wanted; none: all
	// FreezeLimitMS is how long the filesystems may stand at most: after that
	// the agent thaws by itself. 0: the agent's own limit. The agent may have a
	// lower one.
	FreezeLimitMS int64 `json:"freeze_limit_ms,omitempty"`
}

// Prepared answers: the inventory is done.
type Prepared struct {
	Objects       []string      `json:"objects"` // names of those that were found and are wanted
	FreezeLimitMS int64         `json:"freeze_limit_ms"`
	Freezes       bool          `json:"freezes"` // false: the freezing must be left to somebody else (Windows: qemu-ga)
	Steps         []object.Step `json:"steps,omitempty"`
}

// Freeze quiesces the applications and freezes the filesystems.
type Freeze struct {
	Point string `json:"point"`
}

// FreezeAnswer says that everything stands, or what does not.
type FreezeAnswer struct {
	Filesystems int           `json:"filesystems"` // frozen now
	Digest      string        `json:"digest"`      // SHA-256 of the metadata document, in hexadecimal digits
	Size        int64         `json:"size"`        // of the document, bytes
	Steps       []object.Step `json:"steps,omitempty"`
}

// Thawn answers a thaw.
type Thawn struct {
	Filesystems int `json:"filesystems"` // that were thawed, by this call or before it
	// Held says that all that Freeze froze stood until this call: only then is
	// the point what FreezeAnswer said.
	Held     bool          `json:"held"`
	Reason   string        `json:"reason,omitempty"` // why not
	FrozenMS int64         `json:"frozen_ms"`
	Steps    []object.Step `json:"steps,omitempty"` // thawing and post steps
}

// Status is what an agent is doing.
type Status struct {
	Frozen  bool   `json:"frozen"`
	Point   string `json:"point,omitempty"`
	Owed    int    `json:"owed,omitempty"` // post steps that are still to be done
	UptimeS int64  `json:"uptime_s"`
	RSS     int64  `json:"rss"`    // bytes
	CPUMS   int64  `json:"cpu_ms"` // of processor time since it started
}

// Serve names the object whose service is to be stopped or started.
type Serve struct {
	Object string `json:"object"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// Served says what was done.
type Served struct {
	Steps []object.Step `json:"steps"`
}
