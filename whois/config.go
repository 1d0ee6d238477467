package whois

import (
	"fmt"
	"path/filepath"
)

// Config is what the configuration says of whois; the daemon has no use for it.
type Config struct {
	// Audit is a file to which each question is appended: what was asked, by whom, when, and how it was answered.
	Audit string `yaml:"audit"`

	// Case says whether a question has to name a case.
	Case string `yaml:"case"`
}

// Defaults sets what differs from zero when it is not given.
func (c *Config) Defaults() { c.Case = "optional" }

// Validate reports each mistake with the key that it stands under.
func (c *Config) Validate(report func(field, msg string)) {
	if c.Audit != "" && !filepath.IsAbs(c.Audit) {
		report("audit", fmt.Sprintf("%q is no absolute path; write one such as /var/log/ctlogd/whois-audit.jsonl", c.Audit))
	}
	switch c.Case {
	case "optional", "required":
	default:
		report("case", fmt.Sprintf("%q is not known; write optional or required", c.Case))
	}
}
