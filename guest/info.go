package guest

import (
	"context"
	"fmt"
)

const (
	maxCommands = 2000 // of guest-info
	maxText     = 4096 // bytes of a name that the guest gives
)

// Info is what an agent says of itself.
type Info struct {
	Version  string
	Commands map[string]bool // name → enabled
}

// Enabled says whether the agent has a command and its administrator allows
// it. A frozen agent disables all but a few.
func (i Info) Enabled(command string) bool { return i.Commands[command] }

// OS is what the guest says of its operating system. Fields that the guest
// does not tell are empty.
type OS struct {
	ID            string // "debian", "mswindows"
	Name          string
	PrettyName    string
	Version       string
	VersionID     string
	KernelRelease string
	KernelVersion string
	Machine       string // "x86_64"
}

// Ping asks for a sign of life.
func (a *Agent) Ping(ctx context.Context) error { return a.call(ctx, "guest-ping", nil, nil) }

// Info asks for the agent's version and commands.
func (a *Agent) Info(ctx context.Context) (Info, error) {
	var answer struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := a.call(ctx, "guest-info", nil, &answer); err != nil {
		return Info{}, err
	}
	if len(answer.Commands) > maxCommands {
		return Info{}, fmt.Errorf("guest agent: guest-info: %w: %d commands", ErrBadAnswer, len(answer.Commands))
	}
	info := Info{Version: answer.Version, Commands: make(map[string]bool, len(answer.Commands))}
	for _, c := range answer.Commands {
		if err := checkText("guest-info", c.Name); err != nil {
			return Info{}, err
		}
		info.Commands[c.Name] = c.Enabled
	}
	return info, checkText("guest-info", info.Version)
}

// OS asks for the guest's operating system.
func (a *Agent) OS(ctx context.Context) (OS, error) {
	var answer struct {
		ID            string `json:"id"`
		Name          string `json:"name"`
		PrettyName    string `json:"pretty-name"`
		Version       string `json:"version"`
		VersionID     string `json:"version-id"`
		KernelRelease string `json:"kernel-release"`
		KernelVersion string `json:"kernel-version"`
		Machine       string `json:"machine"`
	}
	if err := a.call(ctx, "guest-get-osinfo", nil, &answer); err != nil {
		return OS{}, err
	}
	os := OS(answer)
	return os, checkText("guest-get-osinfo", os.ID, os.Name, os.PrettyName, os.Version, os.VersionID, os.KernelRelease, os.KernelVersion, os.Machine)
}

// Hostname asks for the guest's name of itself.
func (a *Agent) Hostname(ctx context.Context) (string, error) {
	var answer struct {
		Name string `json:"host-name"`
	}
	if err := a.call(ctx, "guest-get-host-name", nil, &answer); err != nil {
		return "", err
	}
	return answer.Name, checkText("guest-get-host-name", answer.Name)
}

// checkText bounds what the guest calls things.
func checkText(command string, texts ...string) error {
	for _, text := range texts {
		if len(text) > maxText {
			return fmt.Errorf("guest agent: %s: %w: a text of %d bytes", command, ErrBadAnswer, len(text))
		}
	}
	return nil
}
