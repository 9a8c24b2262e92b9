package lab

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Kit gives Options.Inject programs of this host with their libraries, and
// modules of the guest's kernel, as "kit/bin/NAME", "kit/lib/NAME" and
// "kit/modules/NAME.ko". Modules are named by their path below kernel/, without
// ".ko". KitSetup makes the guest use them. dir takes the modules' files.
func (a *Assets) Kit(ctx context.Context, dir string, programs, modules []string) (map[string]string, error) {
	inject := map[string]string{}
	for _, name := range programs {
		program, err := lookTool(name)
		if err != nil {
			return nil, err
		}
		if program, err = filepath.EvalSymlinks(program); err != nil {
			return nil, err
		}
		inject["kit/bin/"+name] = program
		libs, err := libraries(ctx, program)
		if err != nil {
			return nil, err
		}
		for _, lib := range libs {
			inject["kit/lib/"+path.Base(lib)] = lib
		}
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	deb, err := findDeb(filepath.Join(cache, "debs"), "linux-image-"+a.KernelVersion+"_*.deb")
	if err != nil || deb == "" {
		return nil, fmt.Errorf("no package of the guest's kernel %s in %s: %w", a.KernelVersion, cache, err)
	}
	files, err := readDeb(ctx, deb, func(name string) bool {
		_, module, _ := strings.Cut(strings.TrimSuffix(name, ".ko"), "/kernel/")
		for _, m := range modules {
			if m == module {
				return true
			}
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	for name, data := range files {
		file := filepath.Join(dir, path.Base(name))
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return nil, err
		}
		inject["kit/modules/"+path.Base(name)] = file
	}
	if len(files) != len(modules) {
		return nil, fmt.Errorf("the guest's kernel package has %d of the modules %q", len(files), modules)
	}
	return inject, nil
}

// KitSetup is a shell command that loads a Kit's modules, in whatever order they
// need each other, and puts its programs into the PATH of the shell.
const KitSetup = `cd /run/inject/kit/modules; for round in 1 2 3 4; do for m in *.ko; do insmod $m 2>/dev/null; done; done
for m in *.ko; do n=$(echo ${m%.ko} | tr - _); [ -d /sys/module/$n ] || echo "module $m is not loaded"; done; cd /
export PATH=$PATH:/run/inject/kit/bin LD_LIBRARY_PATH=/run/inject/kit/lib
`
