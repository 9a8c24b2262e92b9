package discover

import (
	"context"
	"path"
	"strconv"
	"strings"

	"cairn/guest/object"
)

const (
	maxUsers  = 1000
	maxPasswd = 4 << 20
)

// User is a person's account: root's, or one that a person was given.
type User struct {
	Name     string
	UID, GID uint32
	RealName string
	Home     string // as /etc/passwd has it
	HomeDir  string // without symbolic links; "" when it is not there
	Shell    string
	Groups   []string
	// Login says how a password lets the user in: "password", "locked", "none"
	// (no password is asked for), "" when it is not known.
	Login string
	// Keys says that there are SSH keys that let the user in.
	Keys bool
}

// Users finds the accounts of people: by the range of numbers that
// /etc/login.defs sets aside for them. An error says what could not be read;
// what was found counts. Source: passwd(5), shadow(5), group(5), login.defs(5).
func Users(ctx context.Context, root Root) ([]User, error) {
	s := look(root)
	users := s.passwd(ctx)
	login := map[string]string{}
	for _, field := range colons(string(s.read(ctx, "/etc/shadow", maxPasswd)), 2) {
		switch p := field[1]; {
		case p == "":
			login[field[0]] = "none"
		case p[0] == '!' || p[0] == '*':
			login[field[0]] = "locked"
		default:
			login[field[0]] = "password"
		}
	}
	groups := s.groups(ctx, users)
	for i := range users {
		u := &users[i]
		u.Login, u.Groups = login[u.Name], groups[u.Name]
		if home, ok := s.dir(ctx, u.Home); ok && !system[home] {
			u.HomeDir = home
			for _, name := range []string{"authorized_keys", "authorized_keys2"} {
				info, ok := s.stat(ctx, path.Join(home, ".ssh", name))
				u.Keys = u.Keys || ok && info.Size > 0
			}
		}
	}
	return users, s.err()
}

// groups gives the names of each user's groups.
func (s *search) groups(ctx context.Context, users []User) map[string][]string {
	primary, found := map[string][]string{}, map[string][]string{}
	for _, u := range users {
		gid := strconv.Itoa(int(u.GID))
		primary[gid] = append(primary[gid], u.Name)
		found[u.Name] = nil
	}
	for _, g := range colons(string(s.read(ctx, "/etc/group", maxPasswd)), 4) {
		for _, name := range append(strings.Split(g[3], ","), primary[g[2]]...) {
			if list, ok := found[name]; ok {
				add(&list, g[0])
				found[name] = list
			}
		}
	}
	return found
}

// passwd gives the people of /etc/passwd.
func (s *search) passwd(ctx context.Context) []User {
	least, most := uint64(1000), uint64(60000)
	for line := range strings.Lines(string(s.read(ctx, "/etc/login.defs", maxConfig))) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(f[1], 10, 32); err == nil && f[0] == "UID_MIN" {
			least = n
		} else if err == nil && f[0] == "UID_MAX" {
			most = n
		}
	}
	var users []User
	for _, f := range colons(string(s.read(ctx, "/etc/passwd", maxPasswd)), 7) {
		uid, err := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err != nil || err2 != nil || f[0] == "" || uid != 0 && (uid < least || uid > most) || !path.IsAbs(f[5]) || len(users) >= maxUsers {
			continue
		}
		if uid == 0 && f[0] != "root" {
			continue // a second name of root
		}
		real, _, _ := strings.Cut(f[4], ",")
		users = append(users, User{Name: f[0], UID: uint32(uid), GID: uint32(gid), RealName: real, Home: path.Clean(f[5]), Shell: f[6]})
	}
	return users
}

// colons gives the lines of a text that have at least so many fields between
// colons.
func colons(text string, fields int) [][]string {
	var found [][]string
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) >= fields && f[0] != "" && f[0][0] != '#' && f[0][0] != '+' {
			found = append(found, f)
		}
	}
	return found
}

// Object describes a user's profile as a system object, without its
// consistency.
func (u User) Object(taken map[string]bool) object.Object {
	o := object.Object{
		Name:  free(taken, "users/"+object.PartOf(u.Name), strconv.Itoa(int(u.UID))),
		Kind:  object.KindUser,
		Title: object.Text(u.RealName),
		Details: object.Details{
			"uid": u.UID, "gid": u.GID, "shell": object.Text(u.Shell), "home": object.Text(u.Home), "groups": texts(u.Groups, maxSiteWords), "ssh_keys": u.Keys,
		},
	}
	if u.Login != "" {
		o.Details["login"] = u.Login
	}
	place(&o, "home", u.HomeDir)
	return o
}
