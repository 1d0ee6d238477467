// Command clickhouse fills the tables of deploy/clickhouse with an invented trace, and tells what that cost: bytes a
// row, rows a second, and how long questions take. bench/clickhouse.sh runs it.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/engines"
	"github.com/ctlogd/ctlogd/output/format"
)

// chunk is how many records go into one file of JSON lines, which is removed when the engine has read it.
const chunk = 500_000

func main() {
	dir := flag.String("dir", "", "where the tables are made")
	records := flag.String("records", "1000000", "after so many records of the trace it is measured, and after so many more: 20000000,100000000")
	perSecond := flag.Int("rate", 5000, "flows that end in a second of the trace")
	flag.Parse()
	if err := run(*dir, *records, *perSecond); err != nil {
		fmt.Fprintln(os.Stderr, "clickhouse:", err)
		os.Exit(1)
	}
}

func run(dir string, records string, perSecond int) error {
	python, err := engines.Python()
	if err != nil {
		return err
	}
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "bench"})
	if err != nil {
		return err
	}
	cmd := exec.Command(python, "bench/clickhouse/fill.py", filepath.Join(dir, "tables"))
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=deploy/clickhouse/testdata")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	answers := bufio.NewReader(out)
	c := trace.Default()
	c.PerSecond = perSecond
	tr := trace.New(c)
	path := filepath.Join(dir, "chunk.jsonl")
	tell := func(line string) error {
		if _, err := fmt.Fprintln(in, line); err != nil {
			return err
		}
		for {
			answer, err := answers.ReadString('\n')
			if err != nil {
				return fmt.Errorf("the engine: %w", err)
			}
			if answer == "done\n" {
				return nil
			}
			fmt.Print(answer)
		}
	}
	done := 0
	for _, text := range strings.Split(records, ",") {
		upTo, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		for done < upTo {
			n := min(chunk, upTo-done)
			if err := write(path, enc, tr, n); err != nil {
				return err
			}
			if err := tell(path); err != nil {
				return err
			}
			done += n
		}
		if err := tell("measure"); err != nil {
			return err
		}
	}
	if err := in.Close(); err != nil {
		return err
	}
	return cmd.Wait()
}

func write(path string, enc format.Encoder, tr *trace.Trace, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	var r flow.Record
	var line []byte
	for range n {
		r = flow.Record{}
		tr.Next(&r)
		line = append(enc.Append(line[:0], &r), '\n')
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return w.Flush()
}
