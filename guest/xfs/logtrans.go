package xfs

import (
	"context"
	"errors"
	"fmt"
)

// Operations in a record (xfs_log_format.h, xlog_op_header): 12 bytes, then
// data. A transaction is a list of regions; items take one or several.
const (
	opHeader = 12

	opStart     = 0x01
	opCommit    = 0x02
	opContinued = 0x08 // more of the region before
	opUnmount   = 0x20

	transMagic = 0x5452414E // "TRAN", little-endian

	itemInode   = 0x123B
	itemBuffer  = 0x123C
	itemICreate = 0x123F

	maxItemRegions = 1024

	// maxOpenBytes bounds the regions of transactions that are not committed;
	// the kernel's checkpoints have at most 64 MiB.
	maxOpenBytes = 160 << 20
)

// logItem is a change as the log has it: regions[0] says what it is.
type logItem struct {
	kind    uint16
	regions [][]byte
}

// transaction is one that was committed.
type transaction struct {
	lsn   uint64
	items []logItem
}

// openTrans collects a transaction's regions.
type openTrans struct {
	lsn     uint64
	regions [][]byte
	bytes   int
}

// eachTransaction calls fn for every committed transaction from the record at
// sector tail to last, in order.
func (l *logRing) eachTransaction(ctx context.Context, tail int64, last record, fn func(*transaction) error) error {
	c := collector{open: make(map[uint32]*openTrans), fn: fn}
	for at, passed := tail, int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := l.recordAt(at)
		if err != nil {
			return err
		}
		data, err := l.load(r)
		if err != nil {
			return err
		}
		if err := c.record(r, data); err != nil {
			return fmt.Errorf("record at sector %d of the log: %w", r.at, err)
		}
		if r.at == last.at {
			return nil
		}
		if passed += l.distance(r.at, r.end(l)); passed >= l.sectors || r.end(l) == r.at {
			return corrupt("the log has no end")
		}
		at = r.end(l)
	}
}

// distance is the number of sectors from a to b in the ring.
func (l *logRing) distance(a, b int64) int64 { return (b - a + l.sectors) % l.sectors }

// collector puts transactions together.
type collector struct {
	open  map[uint32]*openTrans
	bytes int
	fn    func(*transaction) error
}

var errLongTransactions = errors.New("transactions without an end hold more than 160 MiB")

// record takes a record's operations. The data may have padding behind them.
func (c *collector) record(r record, data []byte) error {
	for range r.ops {
		if len(data) < opHeader {
			return corrupt("operation header")
		}
		id, length, flags := be.Uint32(data), be.Uint32(data[4:]), data[9]
		data = data[opHeader:]
		if uint64(length) > uint64(len(data)) {
			return corrupt("operation of %d bytes", length)
		}
		region := data[:length:length]
		data = data[length:]
		if flags&opUnmount != 0 {
			continue
		}
		if err := c.operation(r, id, flags, region); err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) operation(r record, id uint32, flags uint8, region []byte) error {
	t := c.open[id]
	if flags&opStart != 0 {
		if t != nil {
			c.bytes -= t.bytes
		}
		t = &openTrans{lsn: r.lsn}
		c.open[id] = t
	}
	if t == nil {
		return nil // began before the tail: it is on the disk
	}
	if flags&opCommit != 0 {
		delete(c.open, id)
		c.bytes -= t.bytes
		done, err := t.close()
		if err != nil {
			return err
		}
		return c.fn(done)
	}
	if len(region) == 0 {
		return nil
	}
	cost := len(region) + 24
	if t.bytes, c.bytes = t.bytes+cost, c.bytes+cost; c.bytes > maxOpenBytes {
		return errLongTransactions
	}
	if flags&opContinued != 0 {
		n := len(t.regions)
		if n == 0 {
			return corrupt("continuation of nothing")
		}
		t.regions[n-1] = append(t.regions[n-1], region...)
		return nil
	}
	t.regions = append(t.regions, region)
	return nil
}

// close splits the regions into items. The first is the transaction's header.
func (t *openTrans) close() (*transaction, error) {
	done := &transaction{lsn: t.lsn}
	regions := t.regions
	if len(regions) == 0 {
		return done, nil
	}
	if len(regions[0]) < 4 || le.Uint32(regions[0]) != transMagic {
		return nil, corrupt("transaction without a header")
	}
	for regions = regions[1:]; len(regions) > 0; {
		if len(regions[0]) < 4 {
			return nil, corrupt("log item of %d bytes", len(regions[0]))
		}
		n := int(le.Uint16(regions[0][2:]))
		if n == 0 || n > maxItemRegions || n > len(regions) {
			return nil, corrupt("log item of %d regions", n)
		}
		done.items = append(done.items, logItem{kind: le.Uint16(regions[0]), regions: regions[:n:n]})
		regions = regions[n:]
	}
	return done, nil
}
