package e2e_test

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"
)

// Pictures for docs/, of what a test has seen.

// Of the board, in pixels: a unit of Grafana's grid, which has 24 columns, and what a panel has around its plot.
const (
	column, row, gap       = 46, 24, 8
	left, right, top, foot = 58, 12, 30, 14
)

var colours = []string{"#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300"}

// draw draws the panels, as Grafana would lay them out.
func (b board) draw() []byte {
	width, height := 24*column+gap, 0
	first, last := math.Inf(1), math.Inf(-1)
	for _, p := range b.Panels {
		height = max(height, (p.GridPos.Y+p.GridPos.H)*row+gap)
		for _, s := range p.series {
			for _, v := range s.values {
				first, last = min(first, v[0]), max(last, v[0])
			}
		}
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" fill="#ccccdc">`+"\n", width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#111217"/>`+"\n", width, height)
	for _, p := range b.Panels {
		p.draw(&out, first, last)
	}
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func (p panel) draw(out *bytes.Buffer, first, last float64) {
	x, y, w, h := p.GridPos.X*column+gap, p.GridPos.Y*row+gap, p.GridPos.W*column-gap, p.GridPos.H*row-gap
	fmt.Fprintf(out, `<g transform="translate(%d %d)"><rect width="%d" height="%d" rx="3" fill="#181b1f"/><text x="10" y="19" font-size="13">%s</text>`+"\n", x, y, w, h, html.EscapeString(p.Title))
	defer out.WriteString("</g>\n")
	if p.Type == "stat" {
		for i, s := range p.series {
			at := w * (2*i + 1) / (2 * len(p.series))
			fmt.Fprintf(out, `<text x="%d" y="%d" font-size="34" fill="%s" text-anchor="middle">%s</text><text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n",
				at, h/2+20, colours[0], p.format(s.values[len(s.values)-1][1]), at, h/2+40, html.EscapeString(s.name))
		}
		return
	}
	// The legend is below the plot, in lines.
	legend, line := []string{""}, 0
	for i, s := range p.series {
		entry := fmt.Sprintf(`<tspan fill="%s">▬</tspan> %s   `, colours[i%len(colours)], html.EscapeString(s.name))
		if line += len(s.name) + 5; line > (w-left)/6 && legend[len(legend)-1] != "" {
			legend, line = append(legend, ""), len(s.name)+5
		}
		legend[len(legend)-1] += entry
	}
	bottom := h - foot*len(legend) - 8
	for i, text := range legend {
		fmt.Fprintf(out, `<text x="%d" y="%d" xml:space="preserve">%s</text>`+"\n", left, bottom+foot*(i+1)+4, text)
	}
	most := 0.0
	for _, s := range p.series {
		for _, v := range s.values {
			most = max(most, v[1])
		}
	}
	step := niceStep(most / 3)
	switch p.FieldConfig.Defaults.Unit {
	case "bytes":
		step = math.Pow(2, math.Ceil(math.Log2(max(most/3, 1))))
	case "percentunit":
		step = 0.25
	}
	scale := float64(bottom-top) / (step * 4)
	for i := range 5 {
		at := float64(bottom) - float64(i)*step*scale
		fmt.Fprintf(out, `<path d="M%d %.1fH%d" stroke="#2c3235"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left, at, w-right, left-6, at+4, p.format(float64(i)*step))
	}
	for i, s := range p.series {
		var path strings.Builder
		for j, v := range s.values {
			command := "L"
			if j == 0 || v[0]-s.values[j-1][0] > 5 { // nothing was known in between
				command = "M"
			}
			fmt.Fprintf(&path, "%s%.1f %.1f", command, left+(v[0]-first)/(last-first)*float64(w-left-right), float64(bottom)-v[1]*scale)
		}
		fmt.Fprintf(out, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", path.String(), colours[i%len(colours)])
	}
}

// niceStep is the least of 1, 2 and 5, times a power of ten, that is not below that.
func niceStep(least float64) float64 {
	if least <= 0 {
		return 0.25
	}
	power := math.Pow(10, math.Floor(math.Log10(least)))
	steps := []float64{1, 2, 5, 10}
	return power * steps[slices.IndexFunc(steps, func(s float64) bool { return s*power >= least })]
}

// format writes a value in the panel's unit.
func (p panel) format(value float64) string {
	switch p.FieldConfig.Defaults.Unit {
	case "bytes":
		return units.BytesSize(value)
	case "percentunit":
		return fmt.Sprintf("%.3g %%", 100*value)
	case "s":
		return fmt.Sprintf("%.3g s", value)
	case "ops", "reqps":
		return fmt.Sprintf("%.3g/s", value)
	}
	return fmt.Sprintf("%.3g", value)
}

// terminal draws lines of text as a terminal shows them: those that begin with "$ " as typed.
func terminal(text string) []byte {
	const advance, line, margin = 7.3, 17, 14
	lines, longest := strings.Split(strings.TrimSuffix(text, "\n"), "\n"), 0
	for _, l := range lines {
		longest = max(longest, utf8.RuneCountInString(l))
	}
	width, height := float64(longest)*advance+2*margin, len(lines)*line+2*margin
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" font-family="ui-monospace, Menlo, 'DejaVu Sans Mono', monospace" font-size="12" fill="#ccccdc">`+"\n", width, height)
	fmt.Fprintf(&out, `<rect width="%.0f" height="%d" rx="6" fill="#111217"/>`+"\n", width, height)
	for i, l := range lines {
		if l == "" {
			continue
		}
		style := ""
		if strings.HasPrefix(l, "$ ") {
			style = ` fill="#ffffff" font-weight="bold"`
		}
		// The length is given, since not every monospace font has this advance.
		fmt.Fprintf(&out, `<text x="%d" y="%d" textLength="%.1f" lengthAdjust="spacingAndGlyphs"%s>%s</text>`+"\n", margin, margin+line*i+12, float64(utf8.RuneCountInString(l))*advance, style, html.EscapeString(strings.ReplaceAll(l, " ", "\u00a0")))
	}
	out.WriteString("</svg>\n")
	return out.Bytes()
}
