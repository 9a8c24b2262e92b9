package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// options gives options for one disk, vda, and counts the addresses.
func options(disks ...Disk) Options {
	n := 0
	return Options{Dir: "/new", Name: "web02", UUID: "11111111-2222-4333-8444-555555555555", Disks: disks, Sockets: []string{"cairn.sock"},
		NewMAC: func() string { n++; return fmt.Sprintf("52:54:00:aa:bb:%02x", n) }}
}

var vda = Disk{Name: "vda", Node: "vda", Device: "vda-dev", File: "/img/vda.qcow2", Path: "/new/vda, 1.raw", Format: "raw"}

const tail = " -qmp unix:/new/cairn.sock,server=on,wait=off"

// Words are separated by spaces; "·" stands for a space in a word.
func words(s string) []string {
	list := strings.Fields(s)
	for i := range list {
		list[i] = strings.ReplaceAll(list[i], "·", " ")
	}
	return list
}

const ident = " -name guest=web02 -uuid 11111111-2222-4333-8444-555555555555"

func TestRewrite(t *testing.T) {
	for name, c := range map[string]struct {
		in, want string
		change   func(*Options)
		leftOut  string
		warns    []string
	}{
		"blockdev pair": {
			in: "qemu-system-x86_64 -blockdev driver=file,node-name=f,filename=/img/vda.qcow2,discard=unmap,aio=native -blockdev driver=qcow2,node-name=vda,file=f,discard=unmap,l2-cache-size=1 " +
				"-device virtio-blk-pci,drive=vda,id=vda-dev,serial=s",
			want: "qemu-system-x86_64 -blockdev node-name=f,discard=unmap,aio=native,driver=file,filename=/new/vda,,·1.raw -blockdev node-name=vda,discard=unmap,driver=raw,file=f " +
				"-device virtio-blk-pci,drive=vda,id=vda-dev,serial=s" + ident + tail,
		},
		"JSON with a nested file and a base": {
			in: `qemu-kvm -blockdev {"driver":"file","node-name":"bf","filename":"/img/base"} -blockdev {"driver":"qcow2","node-name":"b","file":"bf","read-only":true} ` +
				`-blockdev {"driver":"qcow2","node-name":"vda","file":{"driver":"file","filename":"/img/vda.qcow2"},"backing":"b","cache":{"direct":true}} ` +
				`-device {"driver":"virtio-blk-pci","drive":"vda","id":"vda-dev"}`,
			want: `qemu-kvm -blockdev {"cache":{"direct":true},"driver":"raw","file":{"driver":"file","filename":"/new/vda,·1.raw"},"node-name":"vda"} ` +
				`-device {"drive":"vda","driver":"virtio-blk-pci","id":"vda-dev"}` + ident + tail,
		},
		"disk on another protocol, found by its device below a filter": {
			in: "kvm -blockdev rbd,node-name=r,pool=p,image=i -blockdev raw,node-name=other,file=r -blockdev throttle,node-name=t,throttle-group=g,file=other -device scsi-hd,drive=t,id=vda-dev",
			want: "kvm -blockdev node-name=r,driver=file,filename=/new/vda,,·1.raw -blockdev node-name=other,driver=raw,file=r -blockdev driver=throttle,node-name=t,throttle-group=g,file=other " +
				"-device driver=scsi-hd,drive=t,id=vda-dev,werror=stop,rerror=stop" + ident + tail,
			change: func(o *Options) { o.StopOnError = true },
		},
		"protocol node alone": {
			in:   "kvm -blockdev driver=host_device,node-name=vda,filename=/dev/vg/x -device virtio-blk-pci,drive=vda",
			want: "kvm -blockdev node-name=vda,driver=raw,file.driver=file,file.filename=/new/vda,,·1.raw -device virtio-blk-pci,drive=vda" + ident + tail,
		},
		"drive by id, with options of its image": {
			in:   "kvm -drive file=/other/name,if=none,id=d0,format=qcow2,cache=none,file.locking=off,l2-cache-size=9 -device virtio-blk-pci,drive=d0,id=vda-dev",
			want: "kvm -drive if=none,id=d0,cache=none,file=/new/vda,,·1.raw,format=raw,werror=stop,rerror=stop -device virtio-blk-pci,drive=d0,id=vda-dev" + ident + tail,
			change: func(o *Options) {
				o.StopOnError = true
			},
		},
		"drive by file":      {in: "kvm -drive file=/img/vda.qcow2,if=virtio", want: "kvm -drive if=virtio,file=/new/vda,,·1.raw,format=raw" + ident + tail},
		"drive by its order": {in: "kvm -drive file=x,if=virtio", want: "kvm -drive if=virtio,file=/new/vda,,·1.raw,format=raw" + ident + tail, change: func(o *Options) { o.Disks[0].Name, o.Disks[0].Device = "virtio0", "" }},
		"hdb":                {in: "kvm -hdb /img/vda.qcow2", want: "kvm -drive index=1,media=disk,file=/new/vda,,·1.raw,format=raw" + ident + tail},
		"without an option":  {in: "kvm -m 64 /img/vda.qcow2", want: "kvm -m 64 -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw" + ident + tail},
		"identity": {
			in:   "kvm -name guest=web01,debug-threads=on -uuid 0 -smbios type=1,uuid=0,serial=7 -device vmgenid,guid=1,id=g -hda /img/vda.qcow2",
			want: "kvm -name guest=web02,debug-threads=on -uuid 11111111-2222-4333-8444-555555555555 -smbios type=1,uuid=11111111-2222-4333-8444-555555555555,serial=7 -device driver=vmgenid,guid=auto,id=g -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw" + tail,
		},
		"short name": {in: "kvm -name web01 -hda /img/vda.qcow2", want: "kvm -name guest=web02 -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw -uuid 11111111-2222-4333-8444-555555555555" + tail},
		"every card gets an address": {
			in: `kvm -hda /img/vda.qcow2 -netdev tap,id=n,ifname=tap0,script=no,vhostfd=3 -device virtio-net-pci,netdev=n,mac=52:54:00:12:34:56 -device e1000 -device {"driver":"rtl8139","netdev":"n"} -nic user,model=virtio,hostfwd=tcp::22-:22 -net nic -nic none -netdev tap,id=m,fds=3:4`,
			want: `kvm -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw -netdev type=tap,id=n,script=no -device driver=virtio-net-pci,netdev=n,mac=52:54:00:aa:bb:01 -device driver=e1000,mac=52:54:00:aa:bb:02 ` +
				`-device {"driver":"rtl8139","mac":"52:54:00:aa:bb:03","netdev":"n"} -nic type=user,model=virtio,mac=52:54:00:aa:bb:04 -net type=nic,macaddr=52:54:00:aa:bb:05 -nic none -netdev type=user,id=m,restrict=on` + ident + tail,
			warns: []string{"tap0", "tcp::22-:22", `"m" was handed`},
		},
		"sockets and files": {
			in: "kvm -hda /img/vda.qcow2 -qmp unix:/run/qmp,server,nowait -monitor telnet:127.0.0.1:55,server,nowait -monitor stdio -serial mon:stdio -serial file:/log/s -chardev socket,id=c,path=/run/a/qmp,server=on,wait=off,logfile=/log/c.log " +
				"-chardev socket,id=fd,fd=17,server=on -chardev socket,id=cl,path=/run/swtpm -chardev pty,id=p -vnc :3,websocket=1,share=ignore -spice port=5900,disable-ticketing=on -pidfile /run/pid -D /log/d -gdb tcp::1 -vnc none",
			want: "kvm -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw -qmp unix:/new/qmp,server=on,wait=off -monitor unix:/new/monitor.sock,server=on,wait=off -monitor stdio -serial mon:stdio -serial file:/new/s -chardev backend=socket,id=c,path=/new/qmp-2,server=on,logfile=/new/c.log,wait=off " +
				"-chardev backend=socket,id=fd,server=on,path=/new/fd.sock,wait=off -chardev backend=socket,id=cl,path=/run/swtpm -chardev backend=pty,id=p -vnc unix:/new/vnc.sock,share=ignore -spice disable-ticketing=on,unix=on,addr=/new/spice.sock -pidfile /new/qemu.pid -D /new/qemu-debug.log -vnc none" + ident + tail,
			warns: []string{"/run/swtpm", "-gdb"},
		},
		"what starts another state": {in: "kvm -S -incoming tcp:0:1 -loadvm x -daemonize -hda /img/vda.qcow2", want: "kvm -daemonize -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw" + ident + tail},
		"in the foreground":         {in: "kvm -daemonize -hda /img/vda.qcow2", want: "kvm -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw" + ident + tail, change: func(o *Options) { o.Foreground = true }},
		"other disks are taken out": {
			in: "kvm -hda /img/vda.qcow2 -drive file=/img/vdb,id=vdb,if=none -device virtio-blk-pci,drive=vdb -blockdev file,node-name=cf,filename=/img/vdc -blockdev raw,node-name=vdc,file=cf -device scsi-hd,drive=vdc " +
				"-drive file=/iso/a.iso,media=cdrom -blockdev file,node-name=i,filename=/iso/b.iso -device scsi-cd,drive=i -drive if=ide,media=cdrom -fda /img/floppy",
			want:    "kvm -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw -drive file=/iso/a.iso,media=cdrom -blockdev file,node-name=i,filename=/iso/b.iso -device driver=scsi-cd,drive=i -drive if=ide,media=cdrom" + ident + tail,
			leftOut: "vdb /img/floppy vdc",
		},
		"firmware from the point": {
			in:     "kvm -hda /img/vda.qcow2 -drive if=pflash,format=raw,readonly=on,file=/fw/code -drive if=pflash,format=raw,file=/fw/vars",
			want:   "kvm -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw -drive if=pflash,format=raw,readonly=on,file=/fw/code -drive if=pflash,format=raw,file=/new/nv" + ident + tail,
			change: func(o *Options) { o.NVRAM = "/new/nv" },
		},
		"firmware in nodes, copied": {
			in:    "kvm -hda /img/vda.qcow2 -blockdev file,node-name=c,filename=/fw/code,read-only=on -blockdev file,node-name=v,filename=/fw/vars -machine q35,pflash0=c,pflash1=v",
			want:  "kvm -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw -blockdev file,node-name=c,filename=/fw/code,read-only=on -blockdev node-name=v,driver=file,filename=/new/nvram.fd -machine q35,pflash0=c,pflash1=v" + ident + tail,
			warns: []string{"/fw/vars"},
		},
		"as libvirt starts it": {
			in: `kvm -name guest=lab,debug-threads=on -S -object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/l/key"} -chardev socket,id=charmonitor,fd=28,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control ` +
				`-blockdev {"driver":"file","filename":"/img/base","node-name":"s6"} -blockdev {"node-name":"f6","read-only":true,"driver":"qcow2","file":"s6","backing":null} -blockdev {"driver":"file","filename":"/img/x","node-name":"s4","discard":"unmap"} ` +
				`-blockdev {"node-name":"f4","driver":"qcow2","file":"s4","backing":"f6"} -device {"driver":"virtio-blk-pci","drive":"f4","id":"vda-dev"} -add-fd set=0,fd=26 -chardev file,id=charserial0,path=/dev/fdset/0,append=on`,
			want: `kvm -name guest=web02,debug-threads=on -chardev backend=socket,id=charmonitor,server=on,path=/new/charmonitor.sock,wait=off -mon chardev=charmonitor,id=monitor,mode=control ` +
				`-blockdev {"discard":"unmap","driver":"file","filename":"/new/vda,·1.raw","node-name":"s4"} -blockdev {"driver":"raw","file":"s4","node-name":"f4"} -device {"drive":"f4","driver":"virtio-blk-pci","id":"vda-dev"} ` +
				`-chardev backend=file,id=charserial0,path=/new/0,append=on -uuid 11111111-2222-4333-8444-555555555555` + tail,
			warns: []string{"add-fd"},
		},
		"relative names": {in: "kvm -hda /img/vda.qcow2 -kernel boot/vmlinuz", want: "kvm -drive index=0,media=disk,file=/new/vda,,·1.raw,format=raw -kernel boot/vmlinuz" + ident + tail, warns: []string{"boot/vmlinuz"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(vda)
			if c.change != nil {
				c.change(&o)
			}
			r, err := Rewrite(words(c.in), o)
			if err != nil {
				t.Fatal(err)
			}
			// A driver may be written with or without its implied key.
			got := strings.ReplaceAll(strings.Join(r.Args, " "), "-device driver=", "-device ")
			want := strings.ReplaceAll(strings.Join(words(c.want), " "), "-device driver=", "-device ")
			got, want = strings.ReplaceAll(got, "-blockdev driver=", "-blockdev "), strings.ReplaceAll(want, "-blockdev driver=", "-blockdev ")
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if l := strings.Join(r.LeftOut, " "); l != c.leftOut {
				t.Errorf("left out %q, want %q", l, c.leftOut)
			}
			all := strings.Join(r.Warnings, "\n")
			for _, w := range c.warns {
				if !strings.Contains(all, w) {
					t.Errorf("no warning of %q in %q", w, all)
				}
			}
			if len(c.warns) == 0 && all != "" {
				t.Errorf("warnings %q", all)
			}
		})
	}
}

func TestRewriteRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nothing":      {nil, "the point has none"},
		"no QEMU":      {[]string{"/bin/sh", "-c", "true"}, "not a QEMU"},
		"no disk":      {[]string{"kvm", "-m", "64"}, "no place for the disk vda"},
		"cut off":      {[]string{"kvm", "-m"}, "no value"},
		"bad JSON":     {[]string{"kvm", "-blockdev", "{"}, "not JSON"},
		"JSON twice":   {[]string{"kvm", "-blockdev", "{}{}"}, "more than"},
		"zero byte":    {[]string{"kvm", "-m", "6\x004"}, "zero byte"},
		"too many":     {append([]string{"kvm"}, make([]string, maxArgs)...), "arguments"},
		"another disk": {[]string{"kvm", "-hda", "/img/other"}, "no place"},
	} {
		if _, err := Rewrite(c.args, options(vda)); !errors.Is(err, ErrCommandLine) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of every option that QEMU here knows we know whether it has a value.
func TestOptionsAreQEMUs(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "qemu-system-x86_64", "-help").Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^-([a-z0-9-]+)( or -[a-z]+| file)?(.*)$`)
	found := 0
	for _, m := range line.FindAllStringSubmatch(string(out), -1) {
		name, rest := strings.TrimPrefix(m[1], "-"), m[2]+m[3]
		// "-S              freeze CPU": what follows two spaces is its help.
		hasValue := rest != "" && !strings.HasPrefix(rest, "  ") && !strings.HasPrefix(rest, "\t") && !strings.HasPrefix(rest, " or -") && strings.TrimSpace(rest) != ""
		if name == "h" || name == "dtb" || strings.HasPrefix(strings.TrimSpace(rest), "set") || strings.HasPrefix(strings.TrimSpace(rest), "start ") {
			continue
		}
		found++
		if known := strings.Contains(takesNone, " "+name+" "); known == hasValue {
			t.Errorf("-%s: QEMU's help says %q, and we take it for one without a value: %v", name, rest, known)
		}
	}
	if found < 60 {
		t.Errorf("only %d options found in QEMU's help", found)
	}
}

// The shell gives a program exactly the words, whatever is in them, and
// nothing else runs.
func TestScriptIsQuoted(t *testing.T) {
	dir := t.TempDir()
	show := filepath.Join(dir, "qemu-system-x86_64")
	if err := os.WriteFile(show, []byte("#!/bin/sh\nfor a; do printf '%s\\0' \"$a\"; done\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	hostile := []string{"-name", "a'; touch " + dir + "/owned; '", "$(touch owned)", "`touch owned`", "a\nb", "\\", "", "-x\n#", "\xff\xfe"}
	r := &Result{Args: append([]string{show}, hostile...), LeftOut: []string{"x\ntouch owned"}, Warnings: []string{"y\r\ntouch owned"}}
	script := filepath.Join(dir, "start.sh")
	if err := os.WriteFile(script, []byte(r.Script(dir, []string{"VM z\ntouch owned"})), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "sh", script).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(got, hostile) {
		t.Errorf("got %q, want %q", got, hostile)
	}
	if _, err := os.Stat(filepath.Join(dir, "owned")); err == nil {
		t.Error("the script ran what stood in a word")
	}
}

// A hostile command line of the greatest length takes seconds, not hours.
func TestManyNodes(t *testing.T) {
	args := []string{"kvm", "-hda", "/img/vda.qcow2"}
	for i := range (maxArgs - 3) / 4 {
		args = append(args, "-blockdev", fmt.Sprintf("driver=throttle,node-name=n%d,file=n%d", i, i+1), "-device", fmt.Sprintf("virtio-blk-pci,drive=n%d", i))
	}
	start := time.Now()
	r, err := Rewrite(args, options(vda))
	if err != nil || len(r.LeftOut) == 0 {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
}

// Whatever the command line, the result names no image of the original's and
// can be read again.
func FuzzRewrite(f *testing.F) {
	for _, s := range []string{
		"kvm -blockdev driver=file,node-name=f,filename=/img/x -blockdev qcow2,node-name=vda,file=f -device virtio-blk-pci,drive=vda,id=vda-dev",
		`kvm -blockdev {"driver":"qcow2","node-name":"vda","file":{"driver":"file","filename":"/img/x"},"backing":"vda"}`,
		"kvm -drive file=/img/vda.qcow2,if=virtio -netdev tap,id=n,fd=3 -chardev socket,id=c,path=/a,server",
		"kvm -hda /img/vda.qcow2 -machine q35,pflash0=a,pflash1=a -blockdev file,node-name=a,filename=/x", "kvm -hda /img/vda.qcow2 -blockdev throttle,node-name=a,file=a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Rewrite(words(s), options(vda))
		if err != nil {
			return
		}
		if _, _, err := parseArgs(r.Args); err != nil {
			t.Errorf("the result cannot be read: %v", err)
		}
		placed := 0
		for _, a := range r.Args {
			placed += strings.Count(a, "/new/vda,") // JSON or list
		}
		if placed != 1 {
			t.Errorf("the restored image is named %d times in %q", placed, r.Args)
		}
	})
}

const domain = `<domain type='kvm' id='7'><name>web01</name><uuid>0</uuid><genid>1</genid><os><nvram template='/t'>/var/lib/libvirt/qemu/nvram/web01_VARS.fd</nvram></os>
<devices><disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/><source dev='/dev/vg/x' index='1'/><backingStore/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>
<disk type='file' device='disk'><source file='/img/vdb'/><target dev='vdb'/></disk><disk type='file' device='cdrom'><source file='/iso/a'/><target dev='sda'/><readonly/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet3'/></interface><interface type='network'/>
<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/x'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<serial type='file'><source path='/log/web01'/></serial><graphics type='vnc' port='5901' autoport='no'/></devices><seclabel type='dynamic'><label>a</label></seclabel></domain>`

func TestRewriteDomain(t *testing.T) {
	d := Disk{Name: "virtio-disk0", Device: "virtio-disk0", File: "/dev/vg/x", Path: "/new/vda.qcow2", Format: "qcow2"}
	o := options(d)
	o.NVRAM = "/new/nvram.fd"
	xml, r, err := RewriteDomain(domain, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<name>web02</name>", "<uuid>" + o.UUID + "</uuid>", "file=\"/new/vda.qcow2\"", "type=\"qcow2\"", "52:54:00:aa:bb:01", "52:54:00:aa:bb:02", "/new/nvram.fd", "/new/web01", "br0", "org.qemu.guest_agent.0", "/iso/a"} {
		if !strings.Contains(strings.ReplaceAll(xml, "'", "\""), want) {
			t.Errorf("the new XML lacks %s", want)
		}
	}
	for _, stale := range []string{"/dev/vg/x", "/img/vdb", "52:54:00:00:00:01", "vnet3", "5901", "channel/target", "id='7'", "<label>", "<genid>1", "virtio-disk0"} {
		if strings.Contains(xml, stale) {
			t.Errorf("the new XML still has %s", stale)
		}
	}
	if !slices.Equal(r.LeftOut, []string{"vdb"}) || t.Failed() {
		t.Errorf("left out %q\n%s", r.LeftOut, xml)
	}
	for _, bad := range []string{"", "<domain", "<x/>", "<domain/>", "<domain><devices/></domain>"} {
		if _, _, err := RewriteDomain(bad, o); err == nil {
			t.Errorf("%q was taken for a domain", bad)
		}
	}
}
