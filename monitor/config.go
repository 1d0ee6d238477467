package monitor

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
)

// Config is the block metrics of the configuration. Without Listen there is no listener.
type Config struct {
	// Listen is where metrics and health are served over HTTP, host:port.
	Listen string `yaml:"listen"`

	// WebConfig is a file of Prometheus' exporter-toolkit, with a certificate, users, or both. It is read anew for each
	// connection.
	WebConfig string `yaml:"web_config"`
}

// Validate reports every impossible value by its field.
func (c *Config) Validate(report func(field, msg string)) {
	if c.Listen != "" {
		_, port, err := net.SplitHostPort(c.Listen)
		if err != nil {
			report("listen", fmt.Sprintf("%q is no address and port; write it as 127.0.0.1:9469 or [::1]:9469", c.Listen))
		} else if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			report("listen", fmt.Sprintf("port %q is no number from 1 to 65535", port))
		}
	}
	if c.WebConfig != "" {
		if c.Listen == "" {
			report("web_config", "nothing is served without listen; set it, such as to 127.0.0.1:9469, or leave web_config out")
		}
		if !filepath.IsAbs(c.WebConfig) {
			report("web_config", fmt.Sprintf("%q is no absolute path; write one such as /etc/ctlogd/web.yml", c.WebConfig))
		}
	}
}
