"""engines.py ARCHIVE JSONL QUERIES: holds what engines read from an archive against the JSON lines of the same flows."""
import calendar, collections, contextlib, glob, io, json, sys, time

import chdb, duckdb, pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq

archive, jsonl, queries = sys.argv[1:]
rows = [json.loads(line) for line in open(jsonl, encoding="utf-8")]
files = sorted(glob.glob(archive + "/**/*.parquet", recursive=True))
bad = 0


def check(what, got, want):
    global bad
    if got == want:
        print("ok", what, str(got)[:60])
    else:
        bad += 1
        print("BAD", what, str(got)[:500], "want", str(want)[:500])


TIMES = ["time", "start", "end", "from", "to"]
NUMBERS = ["src_port", "dst_port", "nat_src_port", "nat_dst_port", "orig_packets", "orig_bytes", "reply_packets", "reply_bytes",
           "mark", "zone", "icmp_id", "gre_key", "lost", "timeout_s"]
TEXTS = ["event", "src_ip", "nat_src_ip", "helper", "cause"]


def ns(text):
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) * 10**9 + int(text[20:29])


def ended(row):
    return row["event"] == "destroy" and row.get("end") is not None


want = {"count": len(rows)}
for k in NUMBERS:
    want["sum " + k] = sum(r[k] for r in rows if k in r)
for k in TEXTS:
    want["distinct " + k] = len({r[k] for r in rows if k in r})
want["status"] = sum(len(r["status"]) for r in rows if "status" in r)

# DuckDB
db = duckdb.connect()
db.execute("SET TimeZone='UTC'")
table = f"read_parquet('{archive}/**/*.parquet', hive_partitioning = true)"
one = lambda sql: db.execute(f"SELECT {sql} FROM {table}").fetchone()[0]
check("duckdb count", one("count(*)"), want["count"])
for k in NUMBERS:
    check("duckdb sum " + k, one(f'sum("{k}"::HUGEINT)'), want["sum " + k])
for k in TEXTS:
    check("duckdb distinct " + k, one(f'count(DISTINCT "{k}")'), want["distinct " + k])
check("duckdb status", one("sum(len(status))"), want["status"])
check("duckdb host", one("min(host) || max(host)"), "gw1gw1")

# ClickHouse
def ch(sql):
    text = str(chdb.query(f"SELECT toString({sql}) FROM file('{archive}/**/*.parquet', Parquet)", "TSVRaw"))
    return text.strip()
check("chdb count", ch("count()"), str(want["count"]))
for k in NUMBERS:
    check("chdb sum " + k, ch(f"sum(toInt128(assumeNotNull(`{k}`)) * isNotNull(`{k}`))"), str(want["sum " + k]))
for k in TEXTS:
    check("chdb distinct " + k, ch(f"uniqExact(`{k}`)"), str(want["distinct " + k]))
check("chdb status", ch("sum(length(status))"), str(want["status"]))

# Arrow: every value of every row.
def rows_of(path):
    t = pq.ParquetFile(path).read()
    for i, f in enumerate(t.schema):
        if pa.types.is_timestamp(f.type):
            check_type(f)
            t = t.set_column(i, f.name, pc.cast(t.column(i), pa.int64()))
    return t.to_pylist()

def check_type(f):
    assert f.type == pa.timestamp("ns", tz="UTC"), f

got = collections.Counter()
for f in files:
    for r in rows_of(f):
        got[json.dumps({k: v for k, v in r.items() if v is not None}, sort_keys=True)] += 1
wanted = collections.Counter()
for r in rows:
    w = {k: ns(v) if k in TIMES else v for k, v in r.items() if k not in ("v", "host", "flow_id", "duration_ms")}
    if ended(r):
        del w["time"]
    wanted[json.dumps(w, sort_keys=True)] += 1
check("arrow rows", sum(got.values()), len(rows))
for line, n in (wanted - got).items():
    print("missing", n, line); bad += 1
    if bad > 5: break
for line, n in (got - wanted).items():
    print("unexpected", n, line); bad += 1
    if bad > 10: break

# The documented queries.
for path in sorted(glob.glob(queries + "/*")):
    text = open(path).read()
    if path.endswith(".python"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(text)
        n = int(out.getvalue())
    elif text.startswith("-- DuckDB"):
        n = len(db.execute(text).fetchall())
    else:
        n = len(str(chdb.query(text.rstrip().rstrip(";"), "TSV")).splitlines())
    check("documented " + text.splitlines()[1][:30] + " finds rows", n > 0, True)
sys.exit(bad != 0)
