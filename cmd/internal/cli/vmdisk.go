package cli

import (
	"path/filepath"
	"strings"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/serve"
	"cairn/qmp"
)

// parseDisks reads the values of --disk: NAME=FILE[,format=qcow2|raw][,serial=S].
// The format of a file that is registered without one is found now and kept:
// later the guest of a raw disk could have written another header there.
func parseDisks(values []string) ([]config.Disk, error) {
	var list []config.Disk
	for _, v := range values {
		d, err := parseDisk(v)
		if err != nil {
			return nil, err
		}
		for _, other := range list {
			if other.Name == d.Name {
				return nil, usagef("--disk: disk %s is named twice", d.Name)
			}
		}
		list = append(list, d)
	}
	return list, nil
}

func parseDisk(value string) (config.Disk, error) {
	name, rest, ok := strings.Cut(value, "=")
	if !ok || name == "" {
		return config.Disk{}, usagef("--disk %q: write NAME=FILE[,format=qcow2|raw][,serial=S]", value)
	}
	d := config.Disk{Name: name}
	// Options are taken from the end: a file's name may have commas of its own.
	for {
		at := strings.LastIndex(rest, ",")
		if at < 0 {
			break
		}
		key, v, _ := strings.Cut(rest[at+1:], "=")
		switch key {
		case "format":
			d.Format = v
		case "serial":
			d.Serial = v
		default:
			at = -1
		}
		if at < 0 {
			break
		}
		rest = rest[:at]
	}
	d.File = rest
	if !filepath.IsAbs(d.File) {
		return d, usagef("--disk %s: file %q: write the name from the root on (/…)", d.Name, d.File)
	}
	d.File = filepath.Clean(d.File)
	if d.Format == "" {
		var err error
		if d.Format, err = qmp.ImageFormat(d.File); err != nil {
			return d, usagef("--disk %s: %v", d.Name, err)
		}
	}
	if err := d.Check(); err != nil {
		return d, usagef("--disk: %v", err)
	}
	return d, nil
}

// jobVM gives a registered VM as a job wants it.
func jobVM(v config.VM) job.VM { return serve.JobVM(v) }
