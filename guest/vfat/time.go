package vfat

import (
	"time"

	"cairn/guest/filesystem"
)

// dosTime reads a date (years since 1980 in 7 bits, month 4, day 5) and a time
// (hours 5, minutes 6, two seconds 5), with hundredths of a second from 0 to
// 199. What is out of range is taken as Linux takes it: a month that does not
// exist is January, a day too many counts on.
func dosTime(date, clock uint16, hundredths uint8) filesystem.Time {
	month := int(date >> 5 & 15)
	if month == 0 || month > 12 {
		month = 1
	}
	t := time.Date(1980+int(date>>9), time.Month(month), max(1, int(date&31)), int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
	return filesystem.Time{
		Sec:  t.Unix() + int64(hundredths/100),
		Nsec: uint32(hundredths%100) * 10_000_000,
	}
}

// exfatTime reads a timestamp of exFAT: date and clock in one word, and an
// offset from UTC in quarters of an hour that its upper bit calls valid
// (specification, 7.4.5 to 7.4.10).
func exfatTime(stamp uint32, hundredths, offset uint8) filesystem.Time {
	t := dosTime(uint16(stamp>>16), uint16(stamp), hundredths)
	if offset&0x80 != 0 {
		quarters := int64(int8(offset<<1) >> 1) // of seven bits
		t.Sec -= quarters * 15 * 60
	}
	return t
}
