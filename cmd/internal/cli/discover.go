package cli

import (
	"context"
	"fmt"
	"path"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/config"
	"cairn/qmp/libvirt"
)

// discoverTimeout bounds the whole of a discovery.
const discoverTimeout = time.Minute

// foundMessage is a domain of `cairn vm discover --json`.
type foundMessage struct {
	Domain     string             `json:"domain"`
	UUID       string             `json:"uuid"`
	State      string             `json:"state"`
	Agent      string             `json:"agent"`
	Disks      []foundDiskMessage `json:"disks"`
	Registered string             `json:"registered,omitempty"` // the VM's name here
	Added      bool               `json:"added"`
	Note       string             `json:"note,omitempty"` // why it was not added
}

type foundDiskMessage struct {
	Name   string `json:"name"`
	Format string `json:"format,omitempty"`
	Source string `json:"source,omitempty"`
	Serial string `json:"serial,omitempty"`
	Whole  bool   `json:"whole"` // read whole each time: it has no checkpoints
	Skip   string `json:"skip,omitempty"`
}

func (a *app) vmDiscoverCmd() *cobra.Command {
	var uri string
	var add bool
	c := &cobra.Command{
		Use:   "discover --libvirt URI [PATTERN…]",
		Short: "List libvirt's domains, and register them with --add",
		Long: `List the domains of a libvirt on this host: their state, their disks and
what of them would be left out, and whether a guest agent is connected. With
--add those that are not registered yet are, by libvirt's names. Patterns
('web*') choose among the domains.`,
		Args: args(0, -1),
		RunE: func(c *cobra.Command, patterns []string) error {
			if err := checkURI(uri); err != nil {
				return err
			}
			for _, p := range patterns {
				if _, err := path.Match(p, ""); err != nil {
					return usagef("pattern %q: %v", p, err)
				}
			}
			ctx, cancel := context.WithTimeout(c.Context(), discoverTimeout)
			defer cancel()
			found, err := libvirt.Discover(ctx, uri)
			if err != nil {
				return err
			}
			list, err := a.known(uri, found, patterns)
			if err != nil {
				return err
			}
			for i := range list {
				if add {
					if err := a.addFound(uri, &list[i]); err != nil {
						return err
					}
				}
			}
			return a.printFound(list)
		},
	}
	c.Flags().StringVar(&uri, "libvirt", "", "libvirt's connection URI: qemu:///system")
	c.Flags().BoolVar(&add, "add", false, "register the domains that are not registered yet")
	return c
}

func checkURI(uri string) error {
	if uri == "" {
		return usagef("name libvirt's connection: --libvirt qemu:///system")
	}
	if _, err := libvirt.ParseURI(uri); err != nil {
		return usagef("%v", err)
	}
	return nil
}

// known joins the domains that fit the patterns with what is registered.
func (a *app) known(uri string, found []libvirt.Found, patterns []string) ([]foundMessage, error) {
	vms, err := a.dirs().VMs()
	if err != nil {
		return nil, err
	}
	list := []foundMessage{}
	for _, f := range found {
		if !fitsAny(f.Name, patterns) {
			continue
		}
		m := foundMessage{Domain: f.Name, UUID: f.UUID, State: f.State.Status, Agent: f.Agent, Disks: []foundDiskMessage{}}
		for _, d := range f.Disks {
			m.Disks = append(m.Disks, foundDiskMessage{d.Name, d.Format, d.File, d.Serial, d.NoBitmaps != "", d.Skip})
		}
		for _, v := range vms {
			if v.Libvirt == uri && (v.Domain == f.Name || v.Domain == f.UUID) {
				m.Registered = v.Name
			}
		}
		list = append(list, m)
	}
	return list, nil
}

func fitsAny(name string, patterns []string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil { // patterns were checked
			return true
		}
	}
	return len(patterns) == 0
}

// addFound registers a domain, or notes why it does not.
func (a *app) addFound(uri string, m *foundMessage) error {
	if m.Registered != "" {
		return nil
	}
	if err := config.CheckName(m.Domain); err != nil {
		m.Note = fmt.Sprintf("%v: cairn vm add NAME --libvirt %s --domain %s", err, uri, m.UUID)
		return nil
	}
	if _, err := a.dirs().VM(m.Domain); err == nil {
		m.Note = fmt.Sprintf("another VM is registered as %s: cairn vm add NAME --libvirt %s --domain %s", m.Domain, uri, m.Domain)
		return nil
	}
	if err := a.dirs().SaveVM(config.VM{Name: m.Domain, Libvirt: uri, Domain: m.Domain}, false); err != nil {
		return err
	}
	m.Registered, m.Added = m.Domain, true
	return nil
}

func (a *app) printFound(list []foundMessage) error {
	if a.json {
		return a.printJSON(map[string]any{"domains": list})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	for _, m := range list {
		status := "not registered"
		switch {
		case m.Added:
			status = "registered now as " + m.Registered
		case m.Registered != "":
			status = "registered as " + m.Registered
		case m.Note != "":
			status = m.Note
		}
		fmt.Fprintf(w, "%s\t%s\tagent %s\t%s\n", safe(m.Domain), m.State, m.Agent, status)
		for _, d := range m.Disks {
			what := "backed up"
			if d.Skip != "" {
				what = "left out: " + d.Skip
			} else if d.Whole {
				what = "backed up, read whole each time"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", safe(d.Name), safe(d.Format), safe(d.Source), what)
		}
	}
	if len(list) == 0 {
		a.say("no domain fits")
	}
	return w.Flush()
}
