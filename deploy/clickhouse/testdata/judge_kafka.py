"""judge_kafka.py SCRATCH JSONL BROKER TOPIC: the engine Kafka reads a topic that holds the lines of JSONL, then one that is not JSON and
one of another version. Embedded in Python it has no threads for materialised views, so each look at flows_queue here is what
such a thread does once: what it reads goes to the views by a table that hands it on."""
import collections, json, sys, time
from chdb.session import Session
from tables import read, statements

scratch, jsonl, broker, topic = sys.argv[1:]
records = [json.loads(line) for line in open(jsonl, encoding="utf-8")]
flows = [r for r in records if r["event"] not in ("gap", "checkpoint")]
gaps = [r for r in records if r["event"] == "gap"]
session = Session(scratch)
run = lambda sql, form="TSVRaw": str(session.query(sql, form)).rstrip("\n")
bad = 0


def check(what, got, want):
    global bad
    bad += got != want
    print("ok" if got == want else "BAD", what, str(got)[:300], "" if got == want else f"want {str(want)[:300]}")


def same(what, table, want):
    out = run(f"SELECT * FROM {table} SETTINGS date_time_output_format = 'iso', output_format_json_quote_64bit_integers = 0", "JSONEachRow")
    known = lambda row: json.dumps({k: v for k, v in row.items() if v is not None and v != "" and v != [] and v is not False}, sort_keys=True)
    got = collections.Counter(known(json.loads(line)) for line in out.splitlines())
    want = collections.Counter(known({k: v for k, v in r.items() if k not in ("v", "duration_ms")}) for r in want)
    check(what, sum((got - want).values()) + sum((want - got).values()), 0)


run("CREATE DATABASE ctlogd")
run("USE ctlogd")
for s in statements(read("tables.sql")):
    run(s)
for table in ("flows", "gaps", "checkpoints", "coverage"):  # the test's records are old
    run(f"ALTER TABLE {table} REMOVE TTL")
queue, *views = statements(read("kafka.sql").replace("'kafka1:9092,kafka2:9092'", f"'{broker}'").replace("'flows'", f"'{topic}'"))
assert "ENGINE = Kafka" in queue and broker in queue and topic in queue
run(queue)
# Like the engine's virtual columns, materialised ones are not among *.
virtual = {"_topic": "LowCardinality(String)", "_partition": "UInt64", "_offset": "UInt64", "_error": "String", "_raw_message": "String"}
run(queue[:queue.index("\n)\nENGINE")].replace("flows_queue", "handed_on") + "".join(
    f",\n    in{name} {type} EPHEMERAL, {name} {type} MATERIALIZED in{name}" for name, type in virtual.items()) + "\n)\nENGINE = Null")
for s in views:
    run(s.replace("flows_queue", "handed_on"))
columns = ", ".join(f"`{c}`" for c in run("SELECT name FROM system.columns WHERE database = 'ctlogd' AND table = 'flows_queue' "
    "AND default_kind = ''").split("\n") if c not in virtual)
deadline = time.time() + 120
count = lambda: sum(int(run(f"SELECT count() FROM {t}")) for t in ("flows", "gaps", "notes", "rejects"))
while count() < len(records) + 2 and time.time() < deadline:
    run(f"INSERT INTO handed_on ({columns}, {', '.join('in' + v for v in virtual)}) SELECT {columns}, {', '.join(virtual)} FROM flows_queue "
        "SETTINGS stream_like_engine_allow_direct_select = 1")
same("flows", "flows", flows)
same("gaps", "gaps", [{k: v for k, v in r.items() if k != "event"} for r in gaps])
rejects = [json.loads(line) for line in run("SELECT topic, error, message FROM rejects ORDER BY message DESC", "JSONEachRow").split("\n")]
unparsed = rejects[0]
check("not JSON", (unparsed["topic"], "Cannot parse" in unparsed["error"], unparsed["message"]), (topic, True, "no JSON"))
# The engine gives the text of those alone that it could not parse.
check("another version", rejects[1:], [{"topic": topic, "error": "version 2 of the format, these tables know 1", "message": ""}])
sys.exit(bad > 0)
