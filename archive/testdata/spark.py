"""spark.py ARCHIVE: runs the program from standard input, which leaves rows in the variable top, and holds them against DuckDB."""
import glob, sys, time

import duckdb

archive = sys.argv[1]
date = max(glob.glob(archive + "/host=*/date=*"), key=lambda d: len(glob.glob(d + "/*.parquet"))).split("date=")[1]
program = sys.stdin.read().replace("s3a://ctlogd", archive).replace("2026-03-09", date)
began = time.time()
scope = {}
exec(program, scope)
print(f"Spark took {time.time() - began:.1f} s")
want = duckdb.sql(f"""SELECT host, src_ip, count(*), sum(orig_bytes + reply_bytes) AS bytes
    FROM read_parquet('{archive}/**/*.parquet', hive_partitioning = true)
    WHERE date = '{date}' AND event = 'destroy' GROUP BY host, src_ip ORDER BY bytes DESC, src_ip LIMIT 10""").fetchall()
got = [tuple(row) for row in scope["top"]]
print("ok" if got == want and got else "BAD", len(got), "subscribers", got[:2], want[:2])
