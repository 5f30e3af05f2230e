// Package docs_test checks what the manual points at: pages, headings and make targets.
package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	link     = regexp.MustCompile(`\[[^\]]+\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	anchor   = regexp.MustCompile(`<a id="([^"]+)">`)
	dropped  = regexp.MustCompile("[^a-z0-9 _-]")
	codeText = regexp.MustCompile("(?s)```.*?```")
)

// anchors are the ids that GitHub gives a page's headings, and those that the page sets.
func anchors(page string) map[string]bool {
	ids := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		ids[strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	for _, m := range anchor.FindAllStringSubmatch(page, -1) {
		ids[m[1]] = true
	}
	return ids
}

func TestLinksLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("*.md")
	require.NoError(t, err)
	linked := map[string]bool{}
	for _, page := range append(pages, "../README.md", "../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		links := link.FindAllStringSubmatch(codeText.ReplaceAllString(string(text), ""), -1)
		for _, m := range links {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			path, id, _ := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			content, err := os.ReadFile(target)
			if info, e := os.Stat(target); e == nil && info.IsDir() {
				err = nil
			}
			if err != nil {
				t.Errorf("%s: %s: %v", page, m[1], err)
				continue
			}
			if id != "" {
				assert.True(t, anchors(codeText.ReplaceAllString(string(content), ""))[id], "%s: %s leads to no heading", page, m[1])
			}
			if page == "README.md" {
				linked[target] = true
			}
		}
	}
	for _, page := range pages {
		if page != "README.md" {
			assert.True(t, linked[page], "the index, README.md, lacks %s", page)
		}
	}
}

var makeCommand = regexp.MustCompile("[`\n]make ([a-z-]+)")

func TestMakeTargetsExist(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	require.NoError(t, err)
	pages, err := filepath.Glob("*.md")
	require.NoError(t, err)
	found := 0
	for _, page := range append(pages, "../README.md", "../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range makeCommand.FindAllStringSubmatch(string(text), -1) {
			found++
			assert.Contains(t, string(makefile), "\n"+m[1]+":", "%s: make %s", page, m[1])
		}
	}
	assert.Greater(t, found, 20)
}

var message = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")

// These pages quote messages. What comes before the first gap in one must be in the program.
func TestMessagesInTheManualAreInTheProgram(t *testing.T) {
	var source strings.Builder
	for _, dir := range []string{"../driver", "../mount", "../providers"} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := os.ReadFile(path)
			source.Write(content)
			return err
		}))
	}
	for page, head := range map[string]string{"failover.md": "| it begins with |", "troubleshooting.md": "| message |"} {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		_, tables, found := strings.Cut(string(text), "\n"+head)
		require.True(t, found, page)
		messages := message.FindAllStringSubmatch(tables, -1)
		require.Greater(t, len(messages), 5, page)
		for _, m := range messages {
			begins, _, _ := strings.Cut(m[1], "…")
			if !strings.Contains(source.String(), strings.TrimSuffix(strings.TrimSpace(begins), ":")) {
				t.Errorf("%s: no message begins with %q", page, begins)
			}
		}
	}
}

// Scripts rely on what the manual says of a volume's Status.
func TestStatusIsDocumented(t *testing.T) {
	page, err := os.ReadFile("operations.md")
	require.NoError(t, err)
	for file, value := range map[string]*regexp.Regexp{
		"../driver/read.go":         regexp.MustCompile(`tatus\["([a-z-]+)"\]`),
		"../driver/volume/phase.go": regexp.MustCompile(`Phase = "([a-z-]+)"`),
	} {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		values := value.FindAllStringSubmatch(string(source), -1)
		require.Greater(t, len(values), 9, file)
		for _, m := range values {
			assert.Regexp(t, "(?m)^\\| .*`"+m[1]+"`", string(page), "%s of %s", m[1], file)
		}
	}
}

var (
	codeRow     = regexp.MustCompile("(?m)^\\| (`[a-z-]+`(?:, `[a-z-]+`)*) \\| ")
	codeLiteral = regexp.MustCompile(`"([a-z]+(?:-[a-z]+)+)"`)
)

// TestDoctorsFindingsAreDocumented compares docs/doctor.md with the codes in the source: words joined by dashes, in the files that examine.
func TestDoctorsFindingsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("doctor.md")
	require.NoError(t, err)
	documented := map[string]bool{"starting": true, "stray": true} // one word
	for _, row := range codeRow.FindAllStringSubmatch(string(page), -1) {
		for code := range strings.SplitSeq(row[1], ", ") {
			documented[strings.Trim(code, "`")] = true
		}
	}
	words := map[string]bool{ // that are no codes
		"modules-dep": true, "blockvol-doctor": true, "loop-control": true, "util-linux": true, "btrfs-progs": true, "instance-id": true,
	}
	used := map[string]bool{"problem": true, "warning": true, "ok": true, "starting": true, "stray": true}
	for _, pattern := range []string{"*/*/examine.go", "*/examine.go", "driver/doctor.go", "plugin/admin/doctor.go", "cmd/blockvol/doctor.go", "cmd/blockvol/examinepeers.go"} {
		files, err := filepath.Glob("../" + pattern)
		require.NoError(t, err)
		for _, file := range files {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, literal := range codeLiteral.FindAllStringSubmatch(string(source), -1) {
				if !words[literal[1]] {
					used[literal[1]] = true
					assert.True(t, documented[literal[1]], "%s: doctor.md lacks %s", file, literal[1])
				}
			}
		}
	}
	for code := range documented {
		assert.True(t, used[code], "doctor.md has %s, which nothing finds", code)
	}
}
