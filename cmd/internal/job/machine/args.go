package machine

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// Limits of what is taken for a command line.
const (
	maxArgs  = 4096
	maxBytes = 2 << 20 // the kernel's own limit
)

// ErrCommandLine: this is not a command line of QEMU's that can be rewritten.
var ErrCommandLine = errors.New("QEMU's command line cannot be rewritten")

// option is one of QEMU's options. A disk image that is given without an
// option has the name "".
type option struct {
	name    string
	value   string
	without bool // it takes no value
	gone    bool // it is left out
}

// takesNone are the options without a value. All others have one.
const takesNone = " h help version S snapshot enable-kvm nographic no-reboot no-shutdown daemonize nodefaults no-user-config " +
	"no-acpi no-hpet no-fd-bootchk no-quit full-screen alt-grab ctrl-grab singlestep win2k-hack preconfig only-migratable " +
	"portrait curses sdl semihosting old-param mem-prealloc xen-attach xen-domid-restrict enable-fips usb s " +
	"enable-sync-profile nouserconfig no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection no-frame " +
	"rtc-td-hack localtime one-insn-per-tb audio-help "

var programName = regexp.MustCompile(`^(qemu-system-[a-z0-9_]+|qemu-kvm|kvm|qemu)$`)

// parseArgs parts a command line into the program and its options.
func parseArgs(args []string) (program string, opts []option, err error) {
	if len(args) == 0 {
		return "", nil, fmt.Errorf("%w: the point has none (the backup could not read it)", ErrCommandLine)
	}
	total := 0
	for _, a := range args {
		total += len(a)
		if strings.ContainsRune(a, 0) {
			return "", nil, fmt.Errorf("%w: it holds a zero byte", ErrCommandLine)
		}
	}
	if len(args) > maxArgs || total > maxBytes {
		return "", nil, fmt.Errorf("%w: %d arguments of %d bytes", ErrCommandLine, len(args), total)
	}
	if !programName.MatchString(filepath.Base(args[0])) {
		return "", nil, fmt.Errorf("%w: %.80q is not a QEMU", ErrCommandLine, args[0])
	}
	for i := 1; i < len(args); i++ {
		name, ok := strings.CutPrefix(args[i], "-")
		name = strings.TrimPrefix(name, "-")
		switch {
		case !ok:
			opts = append(opts, option{value: args[i]})
		case strings.Contains(takesNone, " "+name+" "):
			opts = append(opts, option{name: name, without: true})
		case i+1 == len(args):
			return "", nil, fmt.Errorf("%w: the option -%.40s has no value", ErrCommandLine, name)
		default:
			i++
			opts = append(opts, option{name: name, value: args[i]})
		}
	}
	return args[0], opts, nil
}

// formatArgs is parseArgs' reverse, without what is left out.
func formatArgs(program string, opts []option) []string {
	args := []string{program}
	for _, o := range opts {
		switch {
		case o.gone:
		case o.name == "":
			args = append(args, o.value)
		case o.without:
			args = append(args, "-"+o.name)
		default:
			args = append(args, "-"+o.name, o.value)
		}
	}
	return args
}
