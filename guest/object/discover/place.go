package discover

import (
	"fmt"
	"strings"

	"cairn/guest/object"
)

// maxPaths is how many paths one object has at most.
const maxPaths = 200

// system are directories that are no object's alone: a configuration that names
// one must not make a restore of the object put all of it back.
var system = map[string]bool{
	"/": true, "/bin": true, "/boot": true, "/dev": true, "/etc": true, "/home": true, "/lib": true, "/lib32": true, "/lib64": true,
	"/libx32": true, "/media": true, "/mnt": true, "/opt": true, "/proc": true, "/run": true, "/sbin": true, "/srv": true,
	"/sys": true, "/tmp": true, "/usr": true, "/usr/bin": true, "/usr/lib": true, "/usr/local": true, "/usr/sbin": true, "/usr/share": true,
	"/var": true, "/var/cache": true, "/var/lib": true, "/var/log": true, "/var/tmp": true,
}

// place adds a path to an object, if it can be one. A role that is taken gets a
// number; a path that is there already is not repeated.
func place(o *object.Object, role, at string) {
	role = object.PartOf(role)
	if at == "" {
		return
	}
	if system[at] {
		if o.Details == nil {
			o.Details = object.Details{}
		}
		left, _ := o.Details["left_out"].([]string)
		if len(left) < maxPaths {
			o.Details["left_out"] = append(left, role+": "+at+" is not this object's alone")
		}
		return
	}
	if object.CheckPath(at) != nil || len(o.Paths) >= maxPaths {
		return
	}
	taken := map[string]bool{}
	for _, p := range o.Paths {
		if p.Path == at {
			return
		}
		taken[p.Role] = true
	}
	o.Paths = append(o.Paths, object.Path{Role: free(taken, role, ""), Path: at})
}

// free gives an object's name that is not taken, and takes it. owner tells
// namesakes apart; if that is not enough, a number does.
func free(taken map[string]bool, name, owner string) string {
	short := strings.ToValidUTF8(name[:min(len(name), object.MaxName/2)], "_")
	wanted := name
	if taken[wanted] && owner != "" {
		wanted = short + "@" + object.PartOf(owner[:min(len(owner), object.MaxName/3)])
		short = wanted
	}
	for n := 2; taken[wanted]; n++ {
		wanted = fmt.Sprintf("%s-%d", short, n)
	}
	taken[wanted] = true
	return wanted
}

// texts bounds a list for an object's details: how many, and each.
func texts(list []string, limit int) []string {
	const most = 512
	short := make([]string, 0, min(len(list), limit))
	for _, s := range list[:min(len(list), limit)] {
		short = append(short, object.Text(s[:min(len(s), most)]))
	}
	return short
}
