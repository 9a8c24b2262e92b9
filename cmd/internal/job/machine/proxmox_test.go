package machine

import (
	"os/exec"
	"strings"
	"testing"
)

// What `qm showcmd` of Proxmox VE prints: of 8 by its own tests, of 9.1 by a
// user's host.
const (
	proxmox8 = `/usr/bin/kvm -id 101 -name 'simple,debug-threads=on' -no-shutdown
-chardev 'socket,id=qmp,path=/var/run/qemu-server/101.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control'
-chardev 'socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5' -mon 'chardev=qmp-event,mode=control'
-pidfile /var/run/qemu-server/101.pid -daemonize -smbios 'type=1,uuid=7b10d7af-b932-4c66-b2c3-3996152ec465'
-drive 'if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/pve-edk2-firmware//OVMF_CODE.fd'
-drive 'if=pflash,unit=1,id=drive-efidisk0,format=raw,file=/var/lib/vz/images/101/vm-101-disk-2.raw,size=131072'
-smp '3,sockets=1,cores=3,maxcpus=3' -nodefaults -boot 'menu=on,strict=on,reboot-timeout=1000,splash=/usr/share/qemu-server/bootsplash.jpg'
-vnc 'unix:/var/run/qemu-server/101.vnc,password=on' -cpu kvm64,enforce,+kvm_pv_eoi,+kvm_pv_unhalt,+lahf_lm,+sep -m 768
-global 'PIIX4_PM.disable_s3=1' -device 'pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e'
-device 'vmgenid,guid=c773c261-d800-4348-9f5d-167fadd53cf8' -device 'usb-tablet,id=tablet,bus=uhci.0,port=1'
-device 'virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3,free-page-reporting=on'
-iscsi 'initiator-name=iqn.1993-08.org.debian:01:aabbccddeeff'
-drive 'if=none,id=drive-ide2,media=cdrom,aio=io_uring' -device 'ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=200'
-device 'virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5'
-drive 'file=/var/lib/vz/images/101/vm-101-disk-0.qcow2,if=none,id=drive-scsi0,discard=on,format=qcow2,cache=none,aio=io_uring,detect-zeroes=unmap'
-device 'scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100'
-netdev 'type=tap,id=net0,ifname=tap101i0,script=/var/lib/qemu-server/pve-bridge,downscript=/var/lib/qemu-server/pve-bridgedown,vhost=on'
-device 'virtio-net-pci,mac=A2:C0:43:77:08:A0,netdev=net0,bus=pci.0,addr=0x12,id=net0,rx_queue_size=1024,tx_queue_size=256,bootindex=300'
-machine 'type=pc+pve1'`
	proxmox9 = `/usr/bin/kvm -id 103 -name 'MCP,debug-threads=on' -no-shutdown
-chardev 'socket,id=qmp,path=/var/run/qemu-server/103.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control'
-chardev 'socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect-ms=5000' -mon 'chardev=qmp-event,mode=control'
-pidfile /var/run/qemu-server/103.pid -daemonize -smbios 'type=1,uuid=1f4c47f0-4682-4764-acce-54a29bf8e8ff'
-object '{"id":"throttle-drive-efidisk0","limits":{},"qom-type":"throttle-group"}'
-blockdev '{"driver":"raw","file":{"driver":"file","filename":"/usr/share/pve-edk2-firmware//OVMF_CODE_4M.secboot.fd"},"node-name":"pflash0","read-only":true}'
-blockdev '{"detect-zeroes":"on","discard":"ignore","driver":"throttle","file":{"cache":{"direct":false,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"raw","file":{"aio":"io_uring","cache":{"direct":false,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"host_device","filename":"/dev/pve/vm-103-disk-0","node-name":"ea4dd8ab4d2a796772ccac6d0adf68f","read-only":false},"node-name":"fa4dd8ab4d2a796772ccac6d0adf68f","read-only":false,"size":540672},"node-name":"drive-efidisk0","read-only":false,"throttle-group":"throttle-drive-efidisk0"}'
-smp '20,sockets=1,cores=20,maxcpus=20' -nodefaults -vnc 'unix:/var/run/qemu-server/103.vnc,password=on' -m 20480
-object '{"id":"throttle-drive-ide2","limits":{},"qom-type":"throttle-group"}' -object 'iothread,id=iothread-virtioscsi0'
-object '{"id":"throttle-drive-scsi0","limits":{},"qom-type":"throttle-group"}' -readconfig /usr/share/qemu-server/pve-q35-4.0.cfg
-device 'vmgenid,guid=ca7e11cf-9f1c-4903-aefc-ec42906c9700'
-blockdev '{"driver":"throttle","file":{"cache":{"direct":false,"no-flush":false},"driver":"raw","file":{"aio":"io_uring","cache":{"direct":false,"no-flush":false},"driver":"file","filename":"/var/lib/vz/template/iso/ubuntu-24.04.3-live-server-amd64.iso","node-name":"ea7cb3d70806554f36ca5e364c22231","read-only":true},"node-name":"fa7cb3d70806554f36ca5e364c22231","read-only":true},"node-name":"drive-ide2","read-only":true,"throttle-group":"throttle-drive-ide2"}'
-device 'ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=101'
-device 'virtio-scsi-pci,id=virtioscsi0,bus=pci.3,addr=0x1,iothread=iothread-virtioscsi0'
-blockdev '{"detect-zeroes":"on","discard":"ignore","driver":"throttle","file":{"cache":{"direct":true,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"raw","file":{"aio":"io_uring","cache":{"direct":true,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"host_device","filename":"/dev/pve/vm-103-disk-1","node-name":"e72b86ca87ba6bc7e90fffd586061fc","read-only":false},"node-name":"f72b86ca87ba6bc7e90fffd586061fc","read-only":false},"node-name":"drive-scsi0","read-only":false,"throttle-group":"throttle-drive-scsi0"}'
-device 'scsi-hd,bus=virtioscsi0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,device_id=drive-scsi0,bootindex=100,write-cache=on'
-netdev 'type=tap,id=net0,ifname=tap103i0,script=/usr/libexec/qemu-server/pve-bridge,downscript=/usr/libexec/qemu-server/pve-bridgedown,vhost=on'
-device 'virtio-net-pci,mac=BC:24:11:96:18:29,netdev=net0,bus=pci.0,addr=0x12,id=net0,rx_queue_size=1024,tx_queue_size=256,bootindex=102,host_mtu=1500'
-machine 'pflash0=pflash0,pflash1=drive-efidisk0,hpet=off,type=q35+pve0'`
)

// TestProxmoxVE: a VM of Proxmox VE, restored beside the original, shares
// nothing with it: no UUID, no MAC, no socket, no image, no interface.
func TestProxmoxVE(t *testing.T) {
	for name, c := range map[string]struct {
		line  string
		disks []Disk
		old   []string
	}{
		"8": {proxmox8, []Disk{{Name: "scsi0", Device: "scsi0", File: "/var/lib/vz/images/101/vm-101-disk-0.qcow2", Path: "/new/scsi0.raw", Format: "raw"},
			{Name: "drive-efidisk0", File: "/var/lib/vz/images/101/vm-101-disk-2.raw", Path: "/new/drive-efidisk0.raw", Format: "raw"}},
			[]string{"7b10d7af", "A2:C0:43:77:08:A0", "qemu-server/101", "vm-101-disk", "tap101i0", "c773c261"}},
		"9": {proxmox9, []Disk{{Name: "scsi0", Node: "f72b86ca87ba6bc7e90fffd586061fc", Device: "scsi0", File: "/dev/pve/vm-103-disk-1", Path: "/new/scsi0.raw", Format: "raw"},
			{Name: "drive-efidisk0", Node: "fa4dd8ab4d2a796772ccac6d0adf68f", File: "/dev/pve/vm-103-disk-0", Path: "/new/drive-efidisk0.raw", Format: "raw"}},
			[]string{"1f4c47f0", "BC:24:11:96:18:29", "qemu-server/103", "vm-103-disk", "tap103i0", "ca7e11cf"}},
	} {
		out, err := exec.Command("/bin/sh", "-c", `printf '%s\000' `+strings.ReplaceAll(c.line, "\n", " ")).Output()
		if err != nil {
			t.Fatal(err)
		}
		args := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		r, err := Rewrite(args, Options{Dir: "/new", Name: "back", UUID: "11111111-2222-4333-8444-555555555555", Disks: c.disks, NewMAC: func() string { return "52:54:00:00:00:01" }})
		if err != nil {
			t.Errorf("Proxmox VE %s: %v", name, err)
			continue
		}
		if r.CopyNVRAM != "" {
			t.Errorf("Proxmox VE %s: the firmware's variables, which are restored, are copied from %s", name, r.CopyNVRAM)
		}
		text := strings.Join(r.Args, "\n")
		for _, old := range c.old {
			if strings.Contains(text, old) {
				t.Errorf("Proxmox VE %s: the restored VM has the original's %s:\n%s", name, old, text)
			}
		}
		for _, want := range []string{"11111111-2222", "/new/scsi0.raw", "/new/drive-efidisk0.raw", "guest=back", "52:54:00:00:00:01", "-id"} {
			if !strings.Contains(text, want) {
				t.Errorf("Proxmox VE %s: no %s:\n%s", name, want, text)
			}
		}
		// In the original's place it keeps what networks know it by.
		same, err := Rewrite(args, Options{Dir: "/new", Name: "back", UUID: "11111111-2222-4333-8444-555555555555", Disks: c.disks})
		if err != nil {
			t.Fatal(err)
		}
		for _, kept := range c.old {
			if (strings.Contains(kept, ":") || strings.HasPrefix(kept, "tap")) && !strings.Contains(strings.Join(same.Args, "\n"), kept) {
				t.Errorf("Proxmox VE %s: in the original's place: no %s", name, kept)
			}
		}
		if len(same.MACs) > 0 {
			t.Errorf("Proxmox VE %s: new addresses in the original's place: %q", name, same.MACs)
		}
		if len(r.LeftOut) > 0 {
			t.Errorf("Proxmox VE %s: left out: %q", name, r.LeftOut)
		}
	}
}

// TestDomainAsOriginal: a domain that takes the place of one that is gone keeps
// its cards' addresses.
func TestDomainAsOriginal(t *testing.T) {
	const xml = `<domain><name>a</name><uuid>u</uuid><devices><interface type='network'><mac address='52:54:00:aa:bb:cc'/></interface></devices></domain>`
	o := Options{Dir: "/new", Name: "a", UUID: "u", NewMAC: func() string { return "52:54:00:00:00:01" }}
	beside, _, err := RewriteDomain(xml, o)
	if err != nil || strings.Contains(beside, "aa:bb:cc") || !strings.Contains(beside, "52:54:00:00:00:01") {
		t.Errorf("beside: %v\n%s", err, beside)
	}
	o.NewMAC = nil
	if same, r, err := RewriteDomain(xml, o); err != nil || !strings.Contains(same, "52:54:00:aa:bb:cc") || len(r.MACs) > 0 {
		t.Errorf("in its place: %v\n%s", err, same)
	}
}
