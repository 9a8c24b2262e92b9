package cli

// fixedValues are flags that take one of a few words, by command and flag.
var fixedValues = map[string][]string{
	"restore format": {"raw", "qcow2"},
	"key add kind":   {"write", "restore", "housekeeping", "all"},
	"forget clock":   {"store", "host"},
}
