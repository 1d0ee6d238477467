"""Asks DuckDB the questions of a file about an archive, by the SQL of docs/archive.md: engine.py ARCHIVE QUESTIONS cold|warm"""
import csv
import sys
import time
from datetime import UTC, datetime

import duckdb

archive, asked, how = sys.argv[1:]
db = duckdb.connect()
db.execute("SET TimeZone='UTC'")
times, missed = [], 0
with open(asked) as f:
    for q in csv.DictReader(f):
        if how == "cold":
            with open("/proc/sys/vm/drop_caches", "w") as d:
                d.write("3")
            db = duckdb.connect()
            db.execute("SET TimeZone='UTC'")
        at = datetime.fromtimestamp(int(q["at"]) // 1000 / 1e6, UTC).isoformat()
        began = time.perf_counter()
        rows = db.execute(
            f"""SELECT src_ip, src_port, dst_ip, start, "end" FROM read_parquet('{archive}/**/*.parquet', union_by_name=true)
                WHERE nat_src_ip = ? AND nat_src_port = ? AND start <= CAST(? AS TIMESTAMPTZ) AND coalesce("end", time) >= CAST(? AS TIMESTAMPTZ)""",
            [q["address"], int(q["port"]), at, at]).fetchall()
        times.append((time.perf_counter() - began) * 1000)
        missed += q["src"] not in {r[0] for r in rows}
times.sort()
print(f"duckdb    {times[len(times) // 2]:8.2f} ms median, {times[len(times) * 95 // 100]:8.2f} ms p95: point, {how}, {duckdb.__version__} "
      f"({len(times)} questions, {missed} without an answer)")
