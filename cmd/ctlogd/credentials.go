package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// credentialPrefix begins the name of a credential of the service manager's, in the place of a file's path: what the unit
// has as LoadCredential=kafka-password:/root/password is credential:kafka-password. The manager reads the file as root,
// and shows a copy to this service alone.
const credentialPrefix = "credential:"

// credentialsDirectory returns where the credentials are. Whoever calls ctlogd check by hand has no variable, and finds
// those of the service while it runs.
func credentialsDirectory() string {
	return cmp.Or(os.Getenv("CREDENTIALS_DIRECTORY"), "/run/credentials/ctlogd.service")
}

// resolveCredentials puts the paths of credentials in the place of their names.
func resolveCredentials(c *Config, dir string, report func(path, msg string)) {
	resolve := func(path string, file *string) {
		name, ok := strings.CutPrefix(*file, credentialPrefix)
		if !ok {
			return
		}
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			report(path, fmt.Sprintf("%q is no name of a credential; write credential:NAME for LoadCredential=NAME:PATH of the unit", *file))
			return
		}
		*file = filepath.Join(dir, name)
	}
	for i := range c.Outputs.IPFIX {
		tls, at := &c.Outputs.IPFIX[i].TLS, fmt.Sprintf("outputs.ipfix[%d].tls.", i)
		resolve(at+"ca", &tls.CA)
		resolve(at+"cert", &tls.Cert)
		resolve(at+"key", &tls.Key)
	}
	c.Outputs.largeCredentials(resolve)
	for i := range c.Outputs.Syslog {
		tls, at := &c.Outputs.Syslog[i].TLS, fmt.Sprintf("outputs.syslog[%d].tls.", i)
		resolve(at+"ca", &tls.CA)
		resolve(at+"cert", &tls.Cert)
		resolve(at+"key", &tls.Key)
	}
	resolve("metrics.web_config", &c.Metrics.WebConfig)
}
