package main

import (
	"fmt"
	"strings"

	"github.com/blockvol/blockvol/providers"
)

// settingsHelp lists all settings for `blockvol serve --help`.
func settingsHelp() string {
	var b strings.Builder
	b.WriteString("Settings are environment variables. Of NAME[_FILE] set one: NAME to the value, or NAME_FILE to a file that holds it.\n")
	list := func(title string, settings []providers.Setting) {
		fmt.Fprintf(&b, "\n%s:\n", title)
		for _, s := range settings {
			name := s.Name
			if s.Secret {
				name += "[" + providers.FileSuffix + "]"
			}
			fmt.Fprintf(&b, "  %s\n      %s\n", name, plainHelp(s))
		}
	}
	list("General", generalSettings)
	for _, name := range providerNames() {
		list("Provider "+name, constructors[name].settings)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// plainHelp is the help of a setting with its default, for where backquotes mean nothing.
func plainHelp(s providers.Setting) string {
	help := strings.ReplaceAll(s.Help, "`", "")
	if s.Default != "" {
		help += " (default: " + s.Default + ")"
	}
	return help
}
