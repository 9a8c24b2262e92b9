#!/bin/sh
# Makes SYSTEM: a hive with the key MountedDevices, written by hivexsh (package
# libhivex-bin) into an empty hive.
set -eu
cd "$(dirname "$0")"
python3 - <<'P'
import struct
nk = b"nk" + struct.pack("<HQIIIIIIIIIIIIIIIHH", 0x2C, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0x78, 0xFFFFFFFF, 0, 0, 0, 0, 0, 4, 0) + b"ROOT"
sk = b"sk" + struct.pack("<HIIII", 0, 0x78, 0x78, 1, 20) + bytes([1, 0, 4, 0x80] + [0] * 16)
cell = lambda b: struct.pack("<i", -((len(b) + 4 + 7) // 8 * 8)) + b.ljust((len(b) + 4 + 7) // 8 * 8 - 4, b"\0")
b = b"hbin" + struct.pack("<IIQQI", 0, 4096, 0, 0, 0) + cell(nk)
assert len(b) <= 0x78
b = b.ljust(0x78, b"\0")
hole = 0x78 - 0x20 - len(cell(nk))
if hole: b = b[:0x20 + len(cell(nk))] + struct.pack("<i", hole) + b[0x24 + len(cell(nk)):]
b += cell(sk)
b += struct.pack("<i", 4096 - len(b))
b = b.ljust(4096, b"\0")
h = b"regf" + struct.pack("<IIQIIIIII", 1, 1, 0, 1, 3, 0, 1, 0x20, 4096) + struct.pack("<I", 1)
h = h.ljust(508, b"\0")
x = 0
for i in range(0, 508, 4): x ^= struct.unpack_from("<I", h, i)[0]
open("SYSTEM", "wb").write((h + struct.pack("<I", x)).ljust(4096, b"\0") + b)
P
hivexsh -w SYSTEM <<'H'
cd \
add Select
add ControlSet001
add mounteddevices
cd mounteddevices
setval 5
\DosDevices\C:
hex:3:ef,be,ad,de,00,00,10,00,00,00,00,00
\DosDevices\D:
hex:3:44,4d,49,4f,3a,49,44,3a,04,03,02,01,06,05,08,07,09,0a,0b,0c,0d,0e,0f,10
\DosDevices\E:
hex:3:5c,00,3f,00,3f,00,5c,00,49,00,44,00,45,00,23,00,43,00,64,00,52,00,6f,00,6d,00,00,00
\??\Volume{11111111-2222-3333-4444-555555555555}
hex:3:44,4d,49,4f,3a,49,44,3a,04,03,02,01,06,05,08,07,09,0a,0b,0c,0d,0e,0f,10
small
dword:00000007
commit
exit
H
