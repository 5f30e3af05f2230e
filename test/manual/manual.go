// Package manual reads the commands that README.md and the pages of docs/ show, for tests that run them.
package manual

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

var block = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// Commands returns the lines of a page's sh blocks, each a shell command.
func Commands(page string) ([]string, error) {
	text, err := os.ReadFile(page)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, m := range block.FindAllStringSubmatch(string(text), -1) {
		if m[1] == "sh" {
			lines = append(lines, strings.Split(strings.TrimSpace(m[2]), "\n")...)
		}
	}
	return lines, nil
}

// Stack returns a page's first yaml block, which is a stack file.
func Stack(page string) (string, error) {
	text, err := os.ReadFile(page)
	if err != nil {
		return "", err
	}
	for _, m := range block.FindAllStringSubmatch(string(text), -1) {
		if m[1] == "yaml" {
			return m[2], nil
		}
	}
	return "", fmt.Errorf("%s has no yaml block", page)
}
