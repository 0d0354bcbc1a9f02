// SPDX-License-Identifier: MIT

// Package pod reads a manual page in POD, as far as the tests need it that
// compare manuals with programs: sections, items, verbatim paragraphs.
package pod

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Page is a manual page, read.
type Page struct {
	paragraphs []paragraph
}

// Item is one `=item` of a list. Body is its text. Several items may share one
// text, and then each of them has it.
type Item struct {
	Text string
	Body string
}

type paragraph struct {
	section, subsection string
	command             string // "item", "over"; "" for text
	verbatim            bool
	text                string // without formatting codes
}

// Parse reads a page.
func Parse(source string) *Page {
	p := new(Page)
	var section, subsection string
	comment := false
	for _, block := range blocks(source) {
		command, rest := "", block
		if strings.HasPrefix(block, "=") {
			command, rest, _ = strings.Cut(block[1:], " ")
			command = strings.TrimSpace(command)
		}
		switch {
		case command == "begin":
			comment = true
		case command == "end":
			comment = false
		case comment || command == "encoding":
		case command == "head1":
			section, subsection = plain(rest), ""
			p.paragraphs = append(p.paragraphs, paragraph{section: section, command: command, text: section})
		case command == "head2":
			subsection = plain(rest)
			p.paragraphs = append(p.paragraphs, paragraph{section: section, subsection: subsection, command: command, text: subsection})
		default:
			verbatim := command == "" && (rest[0] == ' ' || rest[0] == '\t')
			text := rest
			if !verbatim {
				text = plain(rest)
			}
			p.paragraphs = append(p.paragraphs, paragraph{section, subsection, command, verbatim, text})
		}
	}
	return p
}

// blocks splits at empty lines.
func blocks(source string) (out []string) {
	for _, b := range strings.Split(source, "\n\n") {
		if b = strings.Trim(b, "\n"); b != "" {
			out = append(out, b)
		}
	}
	return out
}

// plain strips formatting codes (B<…>, C<…>, L<…>) and joins lines.
func plain(s string) string {
	var b strings.Builder
	open := 0
	for i := 0; i < len(s); i++ {
		switch {
		case i+1 < len(s) && s[i+1] == '<' && strings.IndexByte("BCEFILSXZ", s[i]) >= 0:
			open++
			i++
		case s[i] == '>' && open > 0:
			open--
		default:
			b.WriteByte(s[i])
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// Sections returns the headings of the first level.
func (p *Page) Sections() (out []string) {
	for _, g := range p.paragraphs {
		if g.command == "head1" {
			out = append(out, g.text)
		}
	}
	return out
}

// Subsections returns the headings of the second level in a section.
func (p *Page) Subsections(section string) (out []string) {
	for _, g := range p.paragraphs {
		if g.command == "head2" && g.section == section {
			out = append(out, g.text)
		}
	}
	return out
}

func (p *Page) within(section string, subsection []string) (out []paragraph) {
	for _, g := range p.paragraphs {
		if g.section == section && (len(subsection) == 0 || slices.Contains(subsection, g.subsection)) {
			out = append(out, g)
		}
	}
	return out
}

// Items returns the items of a section, or of some of its subsections.
func (p *Page) Items(section string, subsection ...string) (out []Item) {
	waiting := 0 // the first item that has no body yet
	for _, g := range p.within(section, subsection) {
		switch g.command {
		case "item":
			if waiting < len(out) && out[len(out)-1].Body != "" {
				waiting = len(out)
			}
			out = append(out, Item{Text: g.text})
		case "":
			for i := waiting; i < len(out); i++ {
				out[i].Body += g.text + "\n"
			}
		default:
			waiting = len(out) // the list's end
		}
	}
	return out
}

// Text returns all that a section says.
func (p *Page) Text(section string) string {
	var b strings.Builder
	for _, g := range p.within(section, nil) {
		b.WriteString(g.text + "\n")
	}
	return b.String()
}

// Verbatim returns the verbatim texts of a section, or of some subsections of
// it, without their indentation. Paragraphs that follow each other are one
// text.
func (p *Page) Verbatim(section string, subsection ...string) (out []string) {
	joined := false
	for _, g := range p.within(section, subsection) {
		if !g.verbatim {
			joined = false
			continue
		}
		var b strings.Builder
		for line := range strings.Lines(g.text) {
			b.WriteString(strings.TrimPrefix(strings.TrimRight(line, "\n"), " ") + "\n")
		}
		if joined {
			out[len(out)-1] += "\n" + b.String()
		} else {
			out = append(out, b.String())
		}
		joined = true
	}
	return out
}

// Long returns the verbatim lines that have more than n characters with
// man(1)'s indentation.
func (p *Page) Long(n int) (out []string) {
	const indent = 7
	for _, g := range p.paragraphs {
		if !g.verbatim {
			continue
		}
		for line := range strings.Lines(g.text) {
			if line = strings.TrimRight(line, "\n"); indent+utf8.RuneCountInString(line) > n {
				out = append(out, line)
			}
		}
	}
	return out
}
