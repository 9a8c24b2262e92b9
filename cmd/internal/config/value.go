package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Size is a number of bytes.
type Size int64

// Rate is a number of bytes a second.
type Rate int64

// Duration is a time span that is written with days and weeks, too.
type Duration time.Duration

var sizeText = pattern(`^([0-9]+(?:\.[0-9]{1,6})?) ?([A-Za-z]*)$`)

// ParseSize reads "5 GiB" or "500MB": a number and a unit of 1,024 or of 1,000.
func ParseSize(text string) (Size, error) {
	parts := sizeText().FindStringSubmatch(text)
	switch {
	case parts == nil:
		return 0, errors.New("write a size as a number and a unit, like 5 GiB or 500 MiB")
	case parts[2] == "":
		return 0, fmt.Errorf("the unit is missing: write %s GiB, or another of B, KiB, MiB, GiB and TiB", parts[1])
	case len(parts[2]) == 1 && !strings.EqualFold(parts[2], "B"):
		unit := strings.ToUpper(parts[2])
		return 0, fmt.Errorf("%s has two meanings: write %s %siB (of 1,024) or %s %sB (of 1,000)", parts[2], parts[1], unit, parts[1], unit)
	}
	n, err := humanize.ParseBytes(text)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s is no unit: write B, KiB, MiB, GiB or TiB", parts[2])
	case n == 0:
		return 0, errors.New("it must be more than nothing")
	case n > 1<<60:
		return 0, errors.New("it is past 1 EiB")
	}
	return Size(n), nil
}

// ParseRate reads "50 MiB/s".
func ParseRate(text string) (Rate, error) {
	size, ok := strings.CutSuffix(text, "/s")
	if !ok {
		if strings.HasSuffix(text, "ps") || strings.HasSuffix(text, "bit") {
			return 0, errors.New("write bytes a second, like 50 MiB/s")
		}
		return 0, errors.New("write a rate as a size a second, like 50 MiB/s")
	}
	n, err := ParseSize(strings.TrimSuffix(size, " "))
	return Rate(n), err
}

// Percent is a share, 0 to 100.
type Percent float64

var percentText = pattern(`^([0-9]{1,3}(?:\.[0-9]{1,4})?) ?%$`)

// ParsePercent reads "5%".
func ParsePercent(text string) (Percent, error) {
	parts := percentText().FindStringSubmatch(text)
	if parts == nil {
		return 0, errors.New("write a share in percent, like 5%")
	}
	n, err := strconv.ParseFloat(parts[1], 64)
	if err != nil || n > 100 {
		return 0, errors.New("it must be from 0% to 100%")
	}
	return Percent(n), nil
}

// String writes it as ParsePercent reads it.
func (p Percent) String() string { return strconv.FormatFloat(float64(p), 'f', -1, 64) + "%" }

// MarshalText writes it as ParsePercent reads it.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// exactly writes a size with the largest unit that leaves no rest.
func exactly(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; i < len(units)-1 && n != 0 && n%1024 == 0; i++ {
		n /= 1024
	}
	return strconv.FormatInt(n, 10) + " " + units[i]
}

func (n Size) String() string               { return exactly(int64(n)) }
func (n Rate) String() string               { return exactly(int64(n)) + "/s" }
func (n Size) MarshalText() ([]byte, error) { return []byte(n.String()), nil }
func (n Rate) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// durationUnits, the largest first: they are written in this order.
var durationUnits = []struct {
	unit string
	is   time.Duration
}{{"y", 365 * 24 * time.Hour}, {"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

// maxDuration bounds what ParseDuration reads.
const maxDuration = 200 * 365 * 24 * time.Hour

var durationText = pattern(`^([0-9]{1,6}) ?([a-z]+) ?`)

// ParseDuration reads "2h30m", "7d", "1w 3d": years of 365 days, weeks, days,
// hours, minutes and seconds.
func ParseDuration(text string) (Duration, error) {
	var total time.Duration
	next := 0
	for rest := text; rest != ""; {
		parts := durationText().FindStringSubmatch(rest)
		if parts == nil {
			if _, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
				return 0, fmt.Errorf("the unit is missing: write %sm, %sh or %sd, for minutes, hours or days", text, text, text)
			}
			return 0, errors.New("write a time span as numbers and units, like 2h30m or 7d")
		}
		rest = rest[len(parts[0]):]
		i := 0
		for i < len(durationUnits) && durationUnits[i].unit != parts[2] {
			i++
		}
		switch {
		case i == len(durationUnits):
			return 0, fmt.Errorf("%s is no unit: write y, w, d, h, m or s", parts[2])
		case i < next:
			return 0, fmt.Errorf("%s comes too late: write the larger units first, each once", parts[2])
		}
		next = i + 1
		n, _ := strconv.Atoi(parts[1]) // six digits
		if time.Duration(n) > (maxDuration-total)/durationUnits[i].is {
			return 0, errors.New("it is past 200 years")
		}
		total += time.Duration(n) * durationUnits[i].is
	}
	if total == 0 {
		return 0, errors.New("it must be more than nothing")
	}
	return Duration(total), nil
}

// String writes it as ParseDuration reads it.
func (d Duration) String() string {
	text, rest := "", time.Duration(d)
	for _, u := range durationUnits[1:] { // years are not for reading back
		if n := rest / u.is; n > 0 && (u.unit != "w" || rest%u.is == 0) {
			text += strconv.FormatInt(int64(n), 10) + u.unit
			rest %= u.is
		}
	}
	if text == "" {
		return "0s"
	}
	return text
}

// MarshalText writes it as ParseDuration reads it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
