//go:build integration

package systemd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ctlogd/ctlogd/integration/engines"
)

// TestUploadInSandbox: the recipes of deploy/upload upload an archive to an S3 server from inside the unit's sandbox, with the
// drop-in there: rclone, a program as Go makes it, and s3cmd, which is Python.
func TestUploadInSandbox(t *testing.T) {
	skipUnlessBootable(t)
	_, rclone, err := engines.Lake()
	must(t, err)
	read := func(path string) string {
		text, err := os.ReadFile(path)
		must(t, err)
		return string(text)
	}
	const secrets = "endpoint = http://127.0.0.1:9000\naccess_key_id = AKLAKE\nsecret_access_key = correct-horse-battery\n"
	const archives = "outputs: {archive: [{path: /var/log/ctlogd/archive, segment_records: 1000, upload: {command: [/etc/ctlogd/upload]}}, " +
		"{path: /var/log/ctlogd/archive2, segment_records: 1000, upload: {command: [/usr/bin/env, LAKE=lake2, /etc/ctlogd/upload2]}}]}\n" +
		"state_directory: /var/lib/ctlogd\n"
	m := newService(t, map[string]string{config: archives,
		"/etc/systemd/system/ctlogd.service.d/upload.conf": read("../../deploy/upload/ctlogd-upload.conf"),
		"/etc/ctlogd/upload":      read("../../deploy/upload/rclone"),
		"/etc/ctlogd/upload2":     read("../../deploy/upload/s3cmd"),
		"/etc/ctlogd/rclone.conf": "[lake]\ntype = s3\nprovider = Other\nno_check_bucket = true\nforce_path_style = true\n" + secrets,
		"/etc/ctlogd/s3cfg": "[default]\naccess_key = AKLAKE\nsecret_key = correct-horse-battery\nhost_base = 127.0.0.1:9000\n" +
			"host_bucket = 127.0.0.1:9000\nuse_https = False\n",
	})
	for _, script := range []string{"/etc/ctlogd/upload", "/etc/ctlogd/upload2"} {
		must(t, os.Chmod(m.path(script), 0o755))
	}
	for _, secret := range []string{"/etc/ctlogd/rclone.conf", "/etc/ctlogd/s3cfg"} {
		_, err := m.run("chown", "root:ctlogd", secret)
		must(t, err)
		must(t, os.Chmod(m.path(secret), 0o640))
	}
	must(t, os.WriteFile(m.path("/usr/local/bin/rclone"), []byte(read(rclone)), 0o755))

	lake := t.TempDir()
	for _, bucket := range []string{"ctlogd", "lake2"} {
		must(t, os.Mkdir(filepath.Join(lake, bucket), 0o755))
	}
	var said bytes.Buffer
	server := exec.Command(rclone, "serve", "s3", "--addr", "127.0.0.1:9000", "--auth-key", "AKLAKE,correct-horse-battery", "--vfs-cache-mode", "off", lake)
	server.Stderr = &said
	must(t, m.ns.Start(server))
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("%s\n%s", &said, read(m.path(ownLog)))
		}
	})
	must(t, m.flood.Churn(0, 1100))
	for _, bucket := range []string{"ctlogd", "lake2"} {
		eventually(t, "catalog and note are in the bucket "+bucket, func() bool {
			catalogs, _ := filepath.Glob(filepath.Join(lake, bucket, "host=*/date=*/catalog.jsonl"))
			notes, _ := filepath.Glob(filepath.Join(lake, bucket, "host=*/checkpoint.note"))
			return len(catalogs) > 0 && len(notes) > 0
		})
	}
}
