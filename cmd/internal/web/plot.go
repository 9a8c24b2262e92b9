package web

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"
)

// series are values by day; days without one have a gap.
type series struct {
	values []float64
	has    []bool
}

func newSeries(n int) series { return series{make([]float64, n), make([]bool, n)} }

func (s series) set(i int, v float64) { s.values[i], s.has[i] = v, true }
func (s series) add(i int, v float64) { s.values[i], s.has[i] = s.values[i]+v, true }

// plot is a drawing with its table.
type plot struct {
	Title, Note string
	SVG         template.HTML
	Rows        []plotRow // newest first
	Last        string
	Empty       bool
}

type plotRow struct{ Day, Value string }

// axis says how values are written, and where lines are drawn below a highest one.
type axis struct {
	text  func(float64) string
	lines func(most float64) []float64
}

var bytesAxis = axis{
	text: func(v float64) string { return bytesOf(int64(v)) },
	lines: func(most float64) []float64 {
		unit := math.Pow(1024, math.Floor(math.Log(max(most, 1))/math.Log(1024)))
		return steps(most, unit)
	},
}

var timesAxis = axis{
	text: func(v float64) string {
		if v < 10 {
			return fmt.Sprintf("%.1f×", v)
		}
		return fmt.Sprintf("%.0f×", v)
	},
	lines: func(most float64) []float64 { return steps(most, 1) },
}

// steps gives two to five round values up to the first one that is not below most.
func steps(most, unit float64) []float64 {
	n := max(most/unit, 1e-9)
	size := math.Pow(10, math.Floor(math.Log10(n)))
	for _, f := range []float64{0.2, 0.25, 0.5, 1, 2} {
		if step := size * f; n/step <= 5 {
			var out []float64
			for i := 1; ; i++ {
				out = append(out, float64(i)*step*unit)
				if float64(i)*step >= n {
					return out
				}
			}
		}
	}
	return []float64{most}
}

// Size of a drawing, in its own units; the page scales it.
const (
	plotWidth  = 640
	plotHeight = 200
	plotLeft   = 74
	plotBottom = 24
	plotTop    = 10
	plotRight  = 8
)

// newPlot draws. Nothing in the drawing is a guest's: it is numbers and dates.
func newPlot(title, note string, days []time.Time, s series, bars bool, a axis) plot {
	p := plot{Title: title, Note: note}
	most, any := 0.0, false
	for i, has := range s.has {
		if has {
			most, any = max(most, s.values[i]), true
			p.Last = a.text(s.values[i])
		}
	}
	if !any {
		p.Empty = true
		return p
	}
	for i := len(days) - 1; i >= 0; i-- {
		if s.has[i] {
			p.Rows = append(p.Rows, plotRow{days[i].Format("2006-01-02"), a.text(s.values[i])})
		}
	}
	lines := a.lines(most)
	top := lines[len(lines)-1]
	if top <= 0 {
		top = 1
	}
	width := float64(plotWidth-plotLeft-plotRight) / float64(len(days))
	x := func(i int) float64 { return plotLeft + width*float64(i) }
	y := func(v float64) float64 { return plotTop + (plotHeight-plotTop-plotBottom)*(1-v/top) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s, by day. The newest value: %s. The table below has all." class="plot">`,
		plotWidth, plotHeight, template.HTMLEscapeString(title), template.HTMLEscapeString(p.Last))
	for _, v := range append([]float64{0}, lines...) {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, plotLeft, plotWidth-plotRight, y(v), y(v))
		fmt.Fprintf(&b, `<text class="axis" x="%d" y="%.1f" text-anchor="end">%s</text>`, plotLeft-8, y(v)+4, template.HTMLEscapeString(a.text(v)))
	}
	for i, d := range days {
		if d.Day() == 1 || i == 0 && d.Day() < 20 {
			anchor := "middle"
			if i == 0 {
				anchor = "start"
			}
			fmt.Fprintf(&b, `<text class="axis" x="%.1f" y="%d" text-anchor="%s">%s</text>`, x(i), plotHeight-6, anchor, d.Format("2 Jan"))
			fmt.Fprintf(&b, `<line class="grid" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(i), x(i), plotHeight-plotBottom, plotHeight-plotBottom+4)
		}
	}
	if bars {
		for i, has := range s.has {
			if has && s.values[i] > 0 {
				h := max(1, y(0)-y(s.values[i]))
				fmt.Fprintf(&b, `<rect class="bar" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s: %s</title></rect>`,
					x(i)+0.5, y(0)-h, max(1, width-1), h, days[i].Format("2006-01-02"), template.HTMLEscapeString(a.text(s.values[i])))
			}
		}
	} else {
		drawLine(&b, days, s, a, func(i int) float64 { return x(i) + width/2 }, y)
	}
	b.WriteString(`</svg>`)
	p.SVG = template.HTML(b.String())
	return p
}

// drawLine draws a line through the days, with gaps, and a dot for each day.
func drawLine(b *strings.Builder, days []time.Time, s series, a axis, x func(int) float64, y func(float64) float64) {
	var points []string
	flush := func() {
		if len(points) > 1 {
			fmt.Fprintf(b, `<polyline class="line" points="%s"/>`, strings.Join(points, " "))
		}
		points = nil
	}
	gap := 0
	for i, has := range s.has {
		if !has {
			if gap++; gap > 3 { // a day or three without a value are joined
				flush()
			}
			continue
		}
		gap = 0
		points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(s.values[i])))
	}
	flush()
	for i, has := range s.has {
		if has {
			fmt.Fprintf(b, `<circle class="dot" cx="%.1f" cy="%.1f" r="2"><title>%s: %s</title></circle>`, x(i), y(s.values[i]),
				days[i].Format("2006-01-02"), template.HTMLEscapeString(a.text(s.values[i])))
		}
	}
}
