package config

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestVMs(t *testing.T) {
	d := Dirs{Config: t.TempDir()}
	v := VM{Name: "web01", QMP: "/run/web01.qmp", Exclude: []string{"vdb"}}
	if err := d.SaveVM(v, false); err != nil {
		t.Fatal(err)
	}
	if err := d.SaveVM(v, false); err == nil || !strings.Contains(err.Error(), "--replace") {
		t.Errorf("second add: %v", err)
	}
	if err := d.SaveVM(v, true); err != nil {
		t.Error(err)
	}
	got, err := d.VM("web01")
	if err != nil || got.QMP != v.QMP || len(got.Exclude) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := d.VM("db"); !errors.Is(err, ErrUnknownVM) || !strings.Contains(err.Error(), "web01") {
		t.Errorf("unknown: %v", err)
	}
	if err := os.WriteFile(d.vmFile("web01"), []byte("name='web01'\nqmp='x'\nqpm='y'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.VM("web01"); err == nil || !strings.Contains(err.Error(), "qpm") {
		t.Errorf("a misspelt setting: %v", err)
	}
	if err := d.RemoveVM("web01"); err != nil {
		t.Error(err)
	}
	if all, err := d.VMs(); len(all) != 0 || err != nil {
		t.Errorf("after rm: %v, %v", all, err)
	}
}

// A table [vm.NAME] is a VM for the commands, too, and keeps its name from others.
func TestTabledVM(t *testing.T) {
	d := folder(t, map[string]string{"cairn.toml": "[vm.db01]\nlibvirt = \"qemu:///system\"\n"})
	if err := d.SaveVM(VM{Name: "web01", QMP: "/run/web01.qmp"}, false); err != nil {
		t.Fatal(err)
	}
	if v, err := d.VM("db01"); err != nil || v.Libvirt != "qemu:///system" || v.Domain != "db01" {
		t.Errorf("got %+v, %v", v, err)
	}
	if err := d.SaveVM(VM{Name: "db01", QMP: "/x"}, true); err == nil || !strings.Contains(err.Error(), "cairn.toml:1:5") {
		t.Errorf("a second db01: %v", err)
	}
	if _, err := d.VM("mail"); !errors.Is(err, ErrUnknownVM) || !strings.Contains(err.Error(), "db01, web01") {
		t.Errorf("unknown: %v", err)
	}
	// With errors in it what is registered goes on.
	if err := os.WriteFile(d.Config+"/cairn.toml", []byte("[vm.db01]\nlibvrt = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := d.VM("web01"); err != nil || v.QMP != "/run/web01.qmp" {
		t.Errorf("got %+v, %v", v, err)
	}
	if _, err := d.VM("db01"); !errors.Is(err, ErrUnknownVM) || !strings.Contains(err.Error(), "cairn config check") {
		t.Errorf("with errors: %v", err)
	}
	if err := d.SaveVM(VM{Name: "web02", QMP: "/run/web02.qmp"}, false); err != nil {
		t.Error(err)
	}
}

// A VM has one way to it: a monitor, or libvirt.
func TestLibvirtVM(t *testing.T) {
	d := Dirs{Config: t.TempDir()}
	if err := d.SaveVM(VM{Name: "web01", Libvirt: "qemu:///system"}, false); err != nil {
		t.Fatal(err)
	}
	got, err := d.VM("web01")
	if err != nil || got.Libvirt != "qemu:///system" || got.Domain != "web01" || got.QMP != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, text := range []string{"name='web01'\n", "name='web01'\nqmp='/x'\nlibvirt='qemu:///system'\n"} {
		if err := os.WriteFile(d.vmFile("web01"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.VM("web01"); err == nil || !strings.Contains(err.Error(), "one of") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"web01": true, "a.b-c_d": true, "": false, "..": false, ".x": false, "a/b": false, "latest": false, "ü": false, strings.Repeat("x", 200): false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What is said of a repository's upkeep holds; else it is looked after weekly.
func TestUpkeep(t *testing.T) {
	c, err := Load(folder(t, map[string]string{"cairn.toml": "[repository.a]\naddress = \"/a\"\n[repository.b]\naddress = \"/b\"\n" +
		"gc = \"never\"\ncheck = [\"daily\", \"Sun 12:00\"]\ncheck_data = \"0%\"\ncheck_rate = \"1 GiB/s\"\nengine_check = \"monthly\"\n"}))
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.Repositories[0], c.Repositories[1]
	if len(a.GC) != 1 || a.GC[0].String() != defaultGC || a.CheckData != 5 || a.CheckRate != 50<<20 || len(a.Engine) != 1 {
		t.Errorf("by itself: %+v", a.Upkeep)
	}
	if len(b.GC) != 0 || len(b.Check) != 2 || b.CheckData != 0 || b.CheckRate != 1<<30 || b.Engine[0].String() != "monthly" {
		t.Errorf("as written: %+v", b.Upkeep)
	}
	meansTheSame(t, c)
	for text, want := range map[string]string{"5": "write a share in percent, like 5%", "101%": "it must be from 0% to 100%", "-1%": "write a share in percent, like 5%"} {
		d := folder(t, map[string]string{"cairn.toml": basis + "check_data = \"" + text + "\"\n"})
		if got := messages(t, d); !strings.Contains(got, "check_data: \""+text+"\": "+want) {
			t.Errorf("%s: %s", text, got)
		}
	}
}
