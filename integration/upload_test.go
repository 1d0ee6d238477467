//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/integration/engines"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// s3 is an S3 server on a namespace's loopback, with the buckets ctlogd, lake2 and lake3.
type s3 struct{ endpoint, dir string }

const s3Key, s3Secret = "AKLAKE", "correct-horse-battery"

// build compiles a tool of a module of its own below this folder.
func build(t *testing.T, module, path string) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), filepath.Base(path))
	cmd := exec.Command("go", "build", "-o", program, path)
	cmd.Dir = module
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// startS3 starts an S3 server: rclone's, versitygw or MinIO's.
func startS3(t *testing.T, ns *lab.NS, kind, rclone string) s3 {
	t.Helper()
	s := s3{"http://127.0.0.1:9000", t.TempDir()}
	for _, bucket := range []string{"ctlogd", "lake2", "lake3"} {
		must(t, os.Mkdir(filepath.Join(s.dir, bucket), 0o755))
	}
	var cmd *exec.Cmd
	switch kind {
	case "rclone":
		cmd = exec.Command(rclone, "serve", "s3", "--addr", "127.0.0.1:9000", "--auth-key", s3Key+","+s3Secret, "--vfs-cache-mode", "off", s.dir)
	case "versitygw":
		cmd = exec.Command(build(t, "versitygw", "github.com/versity/versitygw/cmd/versitygw"), "--port", "127.0.0.1:9000", "--access", s3Key,
			"--secret", s3Secret, "posix", "--sidecar", t.TempDir(), s.dir)
	case "minio":
		cmd = exec.Command(build(t, "minio", "github.com/minio/minio"), "server", "--address", "127.0.0.1:9000", s.dir)
		cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s3Key, "MINIO_ROOT_PASSWORD="+s3Secret, "MINIO_BROWSER=off", "MINIO_UPDATE=off")
	}
	start(t, ns, cmd)
	awaitListener(t, ns, "tcp", 9000)
	return s
}

// TestUpload: the daemon's archive comes to an S3 server by rclone and by s3cmd, with CTLOGD_LONG=1 by mc, and to a folder by
// rsync, each by its recipe of deploy/upload. Copies of all are verified and answer whois; ClickHouse and DuckDB read the
// buckets, by the queries of docs/fleet.md. The server is rclone's, with CTLOGD_LONG=1 versitygw and MinIO's as well.
func TestUpload(t *testing.T) {
	need(t, "s3cmd", "rsync")
	servers, mc := []string{"rclone"}, ""
	if os.Getenv("CTLOGD_LONG") != "" {
		servers, mc = append(servers, "versitygw", "minio"), build(t, "minio", "github.com/minio/mc")
	}
	for _, server := range servers {
		t.Run(server, func(t *testing.T) { testUpload(t, server, mc) })
	}
}

func testUpload(t *testing.T, kind, mc string) {
	lake, rclone, err := engines.Lake()
	must(t, err)
	python, err := engines.Python()
	must(t, err)
	ns, flood := newFloodNS(t)
	const flows = 2000
	room(t, 4*flows)
	server := startS3(t, ns, kind, rclone)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	rcloneConf := file("rclone.conf", "[lake]\ntype = s3\nprovider = Other\nendpoint = "+server.endpoint+"\naccess_key_id = "+s3Key+
		"\nsecret_access_key = "+s3Secret+"\nno_check_bucket = true\nforce_path_style = true\n")
	s3cfg := file("s3cfg", "[default]\naccess_key = "+s3Key+"\nsecret_key = "+s3Secret+"\nhost_base = 127.0.0.1:9000\nhost_bucket = 127.0.0.1:9000\nuse_https = False\n")
	recipes, err := filepath.Abs("../deploy/upload")
	must(t, err)
	path := "PATH=" + filepath.Dir(rclone) + ":" + os.Getenv("PATH")
	mcHost := "MC_HOST_lake=" + strings.Replace(server.endpoint, "//", "//"+s3Key+":"+s3Secret+"@", 1)
	var outputs strings.Builder
	commands := []string{
		"rclone, upload: {command: [/usr/bin/env, '" + path + "', RCLONE_CONFIG=" + rcloneConf + ", LAKE=lake:ctlogd, " + recipes + "/rclone]}",
		"s3cmd, upload: {command: [/usr/bin/env, S3CMD_CONFIG=" + s3cfg + ", LAKE=lake2, " + recipes + "/s3cmd]}",
		"rsync, upload: {command: [/usr/bin/env, LAKE=" + dir + "/copy-rsync, " + recipes + "/rsync]}",
	}
	if mc != "" {
		commands = append(commands, "mc, upload: {command: [/usr/bin/env, '"+"PATH="+filepath.Dir(mc)+":"+os.Getenv("PATH")+"', '"+mcHost+
			"', STATE_DIRECTORY="+dir+", LAKE=lake3, "+recipes+"/mc]}")
	}
	for _, o := range commands {
		fmt.Fprintf(&outputs, "    - {segment_records: 1000, path: %s/%s}\n", dir, o)
	}
	binary := buildDaemon(t, false)
	conf := file("ctlogd.yaml", "host: gw1\nobserver: lab\noutputs:\n  archive:\n"+outputs.String())
	d := start(t, ns, exec.Command(binary, "run", "-c", conf))
	eventually(t, "the daemon runs", func() bool { return strings.Contains(d.stderr.String(), "logging flows") })
	must(t, flood.Create(0, flows))
	must(t, flood.Delete(0, flows))

	output := func(env []string, args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), env...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, ns.Start(cmd))
		if err := cmd.Wait(); err != nil {
			t.Logf("%v: %v\n%s", args, err, &out)
		}
		return out.String()
	}
	fetch := map[string]func() string{
		"rclone": func() string {
			return output(nil, rclone, "--config", rcloneConf, "sync", "lake:ctlogd", dir+"/copy-rclone")
		},
		"s3cmd": func() string {
			return output(nil, "s3cmd", "--config", s3cfg, "sync", "--delete-removed", "--quiet", "s3://lake2/", dir+"/copy-s3cmd/")
		},
		"rsync": func() string { return "" },
	}
	if mc != "" {
		fetch["mc"] = func() string {
			return output([]string{mcHost}, mc, "--config-dir", dir+"/mc-fetch", "--quiet", "mirror", "--overwrite", "--remove", "lake/lake3", dir+"/copy-mc")
		}
	}
	must(t, os.Mkdir(dir+"/copy-s3cmd", 0o755))
	for how, fetch := range fetch {
		copied := dir + "/copy-" + how
		said, out := "", []byte(nil)
		eventually(t, "the copy by "+how+" is whole", func() bool {
			said = fetch()
			segments, _ := filepath.Glob(copied + "/host=gw1/date=*/*.parquet")
			if len(segments) < 2 {
				return false
			}
			out, _ = exec.Command(binary, "verify", "--sealed", copied).CombinedOutput()
			return bytes.Contains(out, []byte("gw1: sealed and whole"))
		})
		if said != "" {
			t.Logf("%s: %s", how, said)
		}
		first, err := exec.Command("sh", "-c", binary+" cat "+copied+"/host=gw1/date=*/*.parquet").Output()
		must(t, err)
		line, _, _ := bytes.Cut(first, []byte("\n"))
		var flow struct {
			IP   string `json:"nat_src_ip"`
			Src  string `json:"src_ip"`
			Port uint16 `json:"nat_src_port"`
			From uint16 `json:"src_port"`
			End  string `json:"end"`
		}
		must(t, json.Unmarshal(line, &flow))
		if flow.IP == "" {
			flow.IP, flow.Port = flow.Src, flow.From
		}
		answer, _ := exec.Command(binary, "whois", fmt.Sprintf("%s:%d", flow.IP, flow.Port), "--at", flow.End, "--archive", copied, "--json").CombinedOutput()
		if !bytes.Contains(answer, []byte(`"inside_ip":"`+flow.Src+`"`)) && !bytes.Contains(answer, []byte(`"inside_ip": "`+flow.Src+`"`)) {
			t.Errorf("whois on the copy by %s:\n%s", how, answer)
		}
	}
	days, err := filepath.Glob(dir + "/copy-rclone/host=gw1/date=*")
	must(t, err)
	date := strings.TrimPrefix(filepath.Base(days[0]), "date=")
	extension, err := filepath.Glob(lake + "/duckdb_extension_httpfs/extensions/*/httpfs.duckdb_extension")
	must(t, err)
	out := output([]string{"PYTHONPATH=" + lake, "PYTHONDONTWRITEBYTECODE=1"}, python, "testdata/lake.py", server.endpoint, s3Key, s3Secret, date, extension[0], "../docs/fleet.md")
	t.Logf("%s", out)
	for _, want := range []string{"ClickHouse gw1", "DuckDB gw1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q from the buckets", want)
		}
	}
}
