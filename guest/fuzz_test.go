package guest

import (
	"bufio"
	"bytes"
	"testing"
)

// FuzzAnswer gives the agent's bytes to everything that parses them.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "\xff{\"return\": 7}\n", "{\"return\": {}}\n", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
		"{\"ret\xff\xff{\"return\": 6}\n\xff{\"return\": 7}\n",
		"{\"return\": [{\"mountpoint\": \"/\", \"name\": \"vda1\", \"type\": \"ext4\", \"used-bytes\": 1, \"total-bytes\": 2, \"disk\": [{\"serial\": \"s\", \"dev\": \"/dev/vda\", \"bus-type\": \"virtio\", \"bus\": 0, \"target\": 0, \"unit\": 0, \"pci-controller\": {\"domain\": 0, \"bus\": 1, \"slot\": 2, \"function\": 0}}]}]}\n",
		"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), 64)
		if err := skipToSync(r, 7); err == nil && !bytes.Contains(data, []byte{delimiter}) {
			t.Error("synced without a delimiter")
		}
		r = bufio.NewReaderSize(bytes.NewReader(data), 64)
		for {
			line, err := readLine(r)
			if err != nil {
				break
			}
			raw, err := parseAnswer("fuzz", line)
			if err != nil {
				continue
			}
			filesystems, err := parseFilesystems(raw)
			for _, fs := range filesystems {
				if err != nil || fs.UsedBytes > fs.TotalBytes || len(fs.Mountpoint) > maxText {
					t.Errorf("believed %+v, error %v", fs, err)
				}
			}
		}
	})
}
