package qmp

// command is one command as QEMU's schema has it (qapi/*.json); the JSON
// names are part of QEMU's interface.
type command interface{ name() string }

type (
	// System.
	queryStatus       struct{}
	queryName         struct{}
	queryUUID         struct{}
	queryChardev      struct{}
	queryQMPSchema    struct{}
	queryBlock        struct{}
	queryBlockExports struct{}
	queryBlockJobs    struct{}
	queryBlockGraph   struct{}
	queryNamedNodes   struct{}
	stop              struct{}
	cont              struct{}
	nbdServerStop     struct{}
	quit              struct{}
	qomGet            struct {
		Path     string `json:"path"`
		Property string `json:"property"`
	}
	qomList struct {
		Path string `json:"path"`
	}
	qomSet struct {
		Path     string `json:"path"`
		Property string `json:"property"`
		Value    string `json:"value"`
	}

	// A virtio-serial port.
	addSocketChardev struct {
		ID      string        `json:"id"`
		Backend socketChardev `json:"backend"`
	}
	chardevRemove struct {
		ID string `json:"id"`
	}
	addSerialPort struct { // device_add
		Driver  string `json:"driver"` // "virtserialport"
		ID      string `json:"id"`
		Chardev string `json:"chardev"`
		Port    string `json:"name"`
	}

	// Nodes.
	blockdevDel struct {
		Node string `json:"node-name"`
	}
	addRaw struct { // blockdev-add of a raw image in a file
		Driver string  `json:"driver"` // "raw"
		Node   string  `json:"node-name"`
		File   rawFile `json:"file"`
	}
	rawFile struct {
		Driver   string `json:"driver"` // "file", "host_device"
		Node     string `json:"node-name"`
		Filename string `json:"filename"`
	}
	addImage struct { // blockdev-add of an image, in qemu-storage-daemon
		Driver     string  `json:"driver"` // "qcow2", "raw"
		Node       string  `json:"node-name"`
		ReadOnly   bool    `json:"read-only"`
		ForceShare bool    `json:"force-share"` // others may write meanwhile; only with ReadOnly
		File       rawFile `json:"file"`
	}
	addCopyBeforeWrite struct { // blockdev-add
		Driver     string `json:"driver"` // "copy-before-write"
		Node       string `json:"node-name"`
		File       string `json:"file"`
		Target     string `json:"target"`
		OnCBWError string `json:"on-cbw-error"` // "break-snapshot": the guest's write never fails
		CBWTimeout int    `json:"cbw-timeout"`  // seconds
	}
	addNullCo struct { // blockdev-add of a node that holds only bitmaps
		Driver     string `json:"driver"` // "null-co"
		Node       string `json:"node-name"`
		Size       int64  `json:"size"`
		ReadZeroes bool   `json:"read-zeroes"`
	}
	addNBDClient struct { // blockdev-add of a server of ours
		Driver string           `json:"driver"` // "nbd"
		Node   string           `json:"node-name"`
		Server inetOrUnixSocket `json:"server"`
		Export string           `json:"export"`
	}
	inetOrUnixSocket struct {
		Type string `json:"type"` // "unix"
		Path string `json:"path"`
	}
	addSnapshotAccess struct { // blockdev-add
		Driver string `json:"driver"` // "snapshot-access"
		Node   string `json:"node-name"`
		File   string `json:"file"`
	}
	blockJobCancel struct {
		Device string `json:"device"`
		Force  bool   `json:"force"`
	}

	// Bitmaps. All of them may be in a transaction.
	bitmapAdd struct {
		Node        string `json:"node"`
		Name        string `json:"name"`
		Granularity int64  `json:"granularity"`
		Persistent  bool   `json:"persistent"`
		Disabled    bool   `json:"disabled"`
	}
	bitmapDisable struct {
		Node string `json:"node"`
		Name string `json:"name"`
	}
	bitmapRemove struct {
		Node string `json:"node"`
		Name string `json:"name"`
	}
	bitmapMerge struct {
		Node    string   `json:"node"`
		Target  string   `json:"target"`
		Bitmaps []string `json:"bitmaps"`
	}
	bitmapMergeAcross struct { // block-dirty-bitmap-merge from another node
		Node    string         `json:"node"`
		Target  string         `json:"target"`
		Bitmaps []exportBitmap `json:"bitmaps"`
	}
	transaction struct {
		Actions []action `json:"actions"`
	}
	action struct {
		Type string  `json:"type"`
		Data command `json:"data"`
	}

	// Jobs.
	blockdevBackup struct {
		JobID       string     `json:"job-id"`
		Device      string     `json:"device"`
		Target      string     `json:"target"`
		Sync        string     `json:"sync"` // "full", or "bitmap" with Bitmap
		Bitmap      string     `json:"bitmap,omitempty"`
		BitmapMode  string     `json:"bitmap-mode,omitempty"` // "never": the bitmap stays as it is
		AutoDismiss bool       `json:"auto-dismiss"`
		Filter      string     `json:"filter-node-name"`
		Perf        backupPerf `json:"x-perf"`
	}
	backupPerf struct {
		MaxWorkers int   `json:"max-workers"`
		MaxChunk   int64 `json:"max-chunk"` // bytes
	}
	queryJobs  struct{}
	jobDismiss struct {
		ID string `json:"id"`
	}

	// Exports.
	nbdServerStart struct {
		Addr           socketAddress `json:"addr"`
		MaxConnections int           `json:"max-connections"`
	}
	socketAddress struct {
		Type string `json:"type"` // "unix"
		Data struct {
			Path string `json:"path"`
		} `json:"data"`
	}
	blockExportAdd struct {
		Type     string         `json:"type"` // "nbd"
		ID       string         `json:"id"`
		Node     string         `json:"node-name"`
		Name     string         `json:"name"`
		Writable bool           `json:"writable,omitempty"`
		Bitmaps  []exportBitmap `json:"bitmaps,omitempty"`
	}
	exportBitmap struct {
		Node string `json:"node"`
		Name string `json:"name"`
	}
	blockExportDel struct {
		ID   string `json:"id"`
		Mode string `json:"mode"` // "hard"
	}
)

func (addSocketChardev) name() string   { return "chardev-add" }
func (chardevRemove) name() string      { return "chardev-remove" }
func (addSerialPort) name() string      { return "device_add" }
func (queryStatus) name() string        { return "query-status" }
func (queryName) name() string          { return "query-name" }
func (queryUUID) name() string          { return "query-uuid" }
func (queryChardev) name() string       { return "query-chardev" }
func (queryQMPSchema) name() string     { return "query-qmp-schema" }
func (queryBlock) name() string         { return "query-block" }
func (queryBlockExports) name() string  { return "query-block-exports" }
func (queryBlockJobs) name() string     { return "query-block-jobs" }
func (queryBlockGraph) name() string    { return "x-debug-query-block-graph" }
func (queryNamedNodes) name() string    { return "query-named-block-nodes" }
func (stop) name() string               { return "stop" }
func (cont) name() string               { return "cont" }
func (nbdServerStop) name() string      { return "nbd-server-stop" }
func (qomGet) name() string             { return "qom-get" }
func (qomList) name() string            { return "qom-list" }
func (qomSet) name() string             { return "qom-set" }
func (blockdevDel) name() string        { return "blockdev-del" }
func (addRaw) name() string             { return "blockdev-add" }
func (addImage) name() string           { return "blockdev-add" }
func (quit) name() string               { return "quit" }
func (addCopyBeforeWrite) name() string { return "blockdev-add" }
func (addSnapshotAccess) name() string  { return "blockdev-add" }
func (addNullCo) name() string          { return "blockdev-add" }
func (addNBDClient) name() string       { return "blockdev-add" }
func (bitmapMergeAcross) name() string  { return "block-dirty-bitmap-merge" }
func (blockdevBackup) name() string     { return "blockdev-backup" }
func (queryJobs) name() string          { return "query-jobs" }
func (jobDismiss) name() string         { return "job-dismiss" }
func (blockJobCancel) name() string     { return "block-job-cancel" }
func (bitmapAdd) name() string          { return "block-dirty-bitmap-add" }
func (bitmapDisable) name() string      { return "block-dirty-bitmap-disable" }
func (bitmapRemove) name() string       { return "block-dirty-bitmap-remove" }
func (bitmapMerge) name() string        { return "block-dirty-bitmap-merge" }
func (transaction) name() string        { return "transaction" }
func (nbdServerStart) name() string     { return "nbd-server-start" }
func (blockExportAdd) name() string     { return "block-export-add" }
func (blockExportDel) name() string     { return "block-export-del" }

// atomically makes a transaction: all of the commands happen, or none.
func atomically(commands []command) transaction {
	var t transaction
	for _, c := range commands {
		t.Actions = append(t.Actions, action{c.name(), c})
	}
	return t
}
