"""judge_tables.py SCRATCH JSONL ARCHIVE OBSERVER DOCS: holds the tables against the JSON lines that they were filled from."""
import base64, collections, json, re, sys
from tables import KAFKA, QUEUE, Tables, read, statements

scratch, jsonl, archive, observer, docs = sys.argv[1:]
records = [json.loads(line) for line in open(jsonl, encoding="utf-8")]
flows = [r for r in records if r["event"] not in ("gap", "checkpoint")]
gaps = [r for r in records if r["event"] == "gap"]
bad = 0


def check(what, got, want):
    global bad
    if got == want:
        print("ok", what, str(got)[:80])
    else:
        bad += 1
        print("BAD", what, str(got)[:800], "want", str(want)[:800])


def same(what, got, want):
    got, want = (collections.Counter(json.dumps(r, sort_keys=True) for r in rows) for rows in (got, want))
    for line in list((want - got))[:3]:
        print("missing", line)
    for line in list((got - want))[:3]:
        print("unexpected", line)
    check(what, sum((got - want).values()) + sum((want - got).values()), 0)


def known(row):
    """The row without what is not known."""
    return {k: v for k, v in row.items() if v is not None and v != "" and v != [] and v is not False}


ISO = "date_time_output_format = 'iso', output_format_json_quote_64bit_integers = 0"
t = Tables(scratch, archive)
rows = lambda sql: [json.loads(line) for line in t.run(f"{sql} SETTINGS {ISO}", "JSONEachRow").splitlines()]

# Every key has a column, and no column is of anything else.
keys = set(json.load(open(docs + "/flow.schema.json"))["properties"])
columns = lambda table: set(t.one(f"SELECT name FROM system.columns WHERE database = 'ctlogd' AND table = '{table}'").split("\n"))
check("columns", columns("flows") | columns("gaps") | columns("notes"), keys - {"v", "origin"} | {"twin", "forwarded_ip"})
check("columns of the queue", columns("flows_queue") - {"_topic", "_partition", "_offset", "_error", "_raw_message"}, keys - {"duration_ms"})
seen = {k for r in records for k in r}
check("keys that no record has", keys - seen, set())

# What comes from the topic.
t.queue(jsonl)
plain = lambda r, *without: known({k: v for k, v in r.items() if k not in ("v", "duration_ms") + without})
same("flows", map(known, rows("SELECT * FROM flows")), [plain(r) for r in flows])
same("gaps", map(known, rows("SELECT * FROM gaps")), [plain(r, "event") for r in gaps])
same("notes", rows("SELECT * FROM notes"), [{k: r[k] for k in ("host", "time", "lines", "hash", "note")} for r in records if r["event"] == "checkpoint"])
check("duration_ms", t.one("SELECT sum(duration_ms) FROM flows"), str(sum(r["duration_ms"] for r in flows if "duration_ms" in r)))
check("coverage", t.one("SELECT min(first), max(last), sum(records), sum(doubtful) FROM coverage"), "\t".join((
    min(r["time"] for r in flows)[:-1].replace("T", " "), max(r["time"] for r in flows)[:-1].replace("T", " "),
    str(len(flows)), str(sum("clock" in r for r in flows)))))

# All of it twice.
t.queue(jsonl)
check("twice, FINAL", t.one("SELECT count() FROM flows FINAL"), str(len(flows)))
check("twice, without it", t.one("SELECT count() FROM flows"), str(2 * len(flows)))
t.run("OPTIMIZE TABLE flows FINAL")
t.run("OPTIMIZE TABLE gaps FINAL")
check("twice, merged", t.one("SELECT count() FROM flows") + " " + t.one("SELECT count() FROM gaps"), f"{len(flows)} {len(gaps)}")

# The same from the archive: the same rows, and the same flow_id.
out = rows(f"SELECT * EXCEPT (cause, `from`, `to`, lost, output) FROM archive(observer = '{observer}') WHERE event NOT IN ('gap', 'checkpoint')")
same("archive, flows", map(known, out), [plain(r, "ct_id", "community_id", "nat_community_id") for r in flows])
t.run("TRUNCATE TABLE flows")
t.run("TRUNCATE TABLE gaps")
fill = [s.strip().removeprefix("--").strip().rstrip(";") for s in read("archive.sql").splitlines() if "INSERT INTO" in s]
for s in fill:
    t.run(s.replace("observer = '...'", f"observer = '{observer}'").replace("host = '...'", "host = 'gw1'"))
check("archive, statements", len(fill), 4)
same("archive, flows in the table", map(known, rows("SELECT * FROM flows")), [plain(r, "ct_id", "community_id", "nat_community_id") for r in flows])
t.queue(jsonl)
check("archive, flows with an id", t.one("SELECT count() FROM flows FINAL WHERE flow_id != ''"), str(sum("flow_id" in r for r in flows)))
check("archive, gaps", t.one("SELECT count() FROM gaps FINAL"), str(len(gaps)))
note = open(f"{archive}/host=gw1/checkpoint.note", encoding="utf-8").read()
check("archive, notes", t.one("SELECT count(), any(note) = base64Decode('" + base64.b64encode(note.encode()).decode()
    + "'), any(lines), any(length(hash)), any(host), any(time > '2020-01-01') FROM notes WHERE hash != repeat('0af9', 16)"), f"1\t1\t{note.splitlines()[1]}\t{64 if note.splitlines()[2] else 0}\tgw1\t1")
check("archive, checkpoints", t.one("SELECT toHour(began), toHour(ended), min_age_s, whole FROM checkpoints ORDER BY began"),
    "2\t3\t5400\ttrue\n4\t5\t5400\tfalse\n6\t7\t5400\ttrue")

# What cannot be read, and what is of a version to come, is put aside.
t.run("""INSERT INTO flows_queue (v, event, host, time, _topic, _offset, _error, _raw_message)
    SETTINGS insert_allow_materialized_columns = 1 VALUES
    (0, '', '', 0, 'flows', 7, 'cannot parse', '{"v":'), (2, 'destroy', 'new', '2026-03-09 00:00:00', 'flows', 8, '', '{"v":2}')""")
check("rejects", t.one("SELECT offset, error, message FROM rejects ORDER BY offset"),
    '7\tcannot parse\t{"v":\n8\tversion 2 of the format, these tables know 1\t{"v":2}')
check("rejects are no flows", t.one("SELECT count() FROM flows WHERE host != 'gw1'"), "0")


def put(*recs):
    path = scratch + ".jsonl"
    with open(path, "w", encoding="utf-8") as f:
        for r in recs:
            f.write(json.dumps({"v": 1, "time_source": "kernel", "host": "gw9", "proto": "tcp", "proto_num": 6, **r}) + "\n")
    t.queue(path)


# A new record says nothing of a start, and must not be who had an address at any time before.
nat = {"nat": "snat", "nat_src_ip": "198.18.0.1", "nat_src_port": 4000, "dst_ip": "192.0.2.9", "dst_port": 443, "src_port": 1}
at = "2026-03-10T10:00:00.000000000Z"
put({"event": "new", "time": "2026-03-10T11:00:00.000000000Z", "src_ip": "10.9.9.9", **nat},
    {"event": "destroy", "flow_id": "ab" * 16, "time": "2026-03-10T10:30:00.000000000Z", "start": "2026-03-10T09:00:00.000000000Z",
     "end": "2026-03-10T10:30:00.000000000Z", "src_ip": "10.0.0.1", "end_reason": "timeout", **nat})
who = lambda: t.one(f"SELECT inside_ip, event FROM whois(ip = '198.18.0.1', port = 4000, at = '{at}', within = 0)")
check("a new record is no holder", who(), "10.0.0.1\tdestroy")

# A destroy without an end is told with the time at which it was read: twice with two times.
twice = {"event": "destroy", "flow_id": "cd" * 16, "start": "2026-03-10T09:00:00.000000000Z", "src_ip": "10.0.0.2", "end_reason": "unknown", **nat,
         "nat_src_port": 4001}
put({"time": "2026-03-10T23:59:59.000000000Z", **twice})
put({"time": "2026-03-11T00:00:01.000000000Z", **twice})
check("two times of one flow_id", t.one("SELECT count(), max(time) FROM flows FINAL WHERE flow_id = repeat('cd', 16)"), "1\t2026-03-11 00:00:01.000000000")
check("two times, whois", t.one(f"SELECT count() FROM whois(ip = '198.18.0.1', port = 4001, at = '{at}', within = 0)"), "1")

# Completeness, host by host.
whole = "2026-03-09T02:00:00.000000000Z"
put({"event": "destroy", "host": "quiet", "time": "2026-03-09T00:00:00.000000000Z", "end_reason": "timeout", "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2", "nat": "none"},
    {"event": "destroy", "host": "quiet", "time": "2026-03-09T04:00:00.000000000Z", "end_reason": "timeout", "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2", "nat": "none"},
    {"event": "gap", "host": "quiet", "time": "2026-03-09T01:00:00.000000000Z", "cause": "overrun", "from": "2026-03-09T00:50:00.000000000Z", "to": "2026-03-09T01:00:00.000000000Z", "lost": 7},
    {"event": "gap", "host": "only gaps", "time": "2026-03-09T01:00:00.000000000Z", "cause": "untracked", "from": "2026-03-09T00:50:00.000000000Z"})
verdict = lambda at, host="quiet": t.one(f"SELECT verdict, gaps, lost, causes FROM completeness(at = '{at}', within = 1) WHERE host = '{host}'")
check("completeness, gap", verdict("2026-03-09T00:30:00Z"), "gaps\t1\t7\t['overrun']")
check("completeness, whole", verdict("2026-03-09T01:00:01Z"), "complete\t0\t\\N\t[]")
check("completeness, offset", verdict("2026-03-09T02:00:01+01:00"), "complete\t0\t\\N\t[]")
check("completeness, yet to come", verdict("2026-03-09T04:00:00Z"), "not_yet\t0\t\\N\t[]")
check("completeness, before", verdict("2026-03-08T04:00:00Z"), "not_kept\t1\t7\t['overrun']")
check("completeness, no flows", verdict("2026-03-09T00:55:00Z", "only gaps"), "not_kept\t1\t\\N\t['untracked']")
witness = lambda at: t.one(f"SELECT witness FROM completeness(at = '{at}', within = 0) WHERE host = 'gw1'")
check("witness", [witness(f"2026-03-09T{h}Z") for h in ("00:30:00", "00:30:01", "04:30:01")],
    ["2026-03-09 03:00:00.000000000", "2026-03-09 07:00:00.000000000", "\\N"])

# The documented questions.
asked = [s for block in re.findall(r"(?s)```sql\n(.*?)```", open(docs + "/clickhouse.md", encoding="utf-8").read()) for s in statements(block)]
for s in asked:
    t.run(s)
    print("ok documented", s.splitlines()[1])
check("documented questions", len(asked) >= 4, True)

# Days that are over go as a whole.
for s in ("CREATE DATABASE forget", "USE forget", statements(read("tables.sql"))[0]):
    t.run(s)
t.run("INSERT INTO flows (time, event) VALUES (now() - INTERVAL 182 DAY, 'destroy'), (now() - INTERVAL 178 DAY, 'destroy')")
t.run("OPTIMIZE TABLE flows FINAL")
check("TTL", t.one("SELECT count(), min(time) > now() - INTERVAL 179 DAY FROM flows"), "1\t1")

# The real engine of the queue: its table is refused here because there are no threads for a broker, after its settings
# were read.
def fails(text):
    try:
        t.run(text)
        return "it runs"
    except Exception as e:
        return str(e)


kafka = statements(read("kafka.sql"))[0]
check("engine Kafka", "Shutdown was called" in fails(kafka), True)
check("engine Kafka, a wrong setting", fails(kafka.replace("kafka_num_consumers", "kafka_num_consumer").replace("flows_queue", "other_queue")).split("(")[-1].rstrip(")\n "), "UNKNOWN_SETTING")
sys.exit(bad != 0)
