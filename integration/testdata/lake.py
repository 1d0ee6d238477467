"""lake.py ENDPOINT KEY SECRET DATE HTTPFS FLEET: runs the queries of FLEET, docs/fleet.md, on the buckets ctlogd (ClickHouse) and lake2 (DuckDB) of
an S3 server, and prints what each has found."""
import re, sys

import chdb, duckdb

endpoint, key, secret, date, httpfs, fleet = sys.argv[1:]
# rclone's server says ETags without quotes when it reads, and with them when it lists, which ClickHouse takes for a change.
quirk = lambda sql: sql.replace("SETTINGS ", "SETTINGS s3_validate_etag_on_read = 0, ")
db = duckdb.connect()
db.execute(f"LOAD '{httpfs}'")
blocks = re.findall(r"```sql\n-- (\w+)\n(.*?)```", open(fleet, encoding="utf-8").read(), re.S)
for engine, sql in blocks:
    sql = sql.replace("https://s3.example.net", endpoint).replace("s3.example.net", endpoint.split("//")[1])
    sql = sql.replace("'KEY'", f"'{key}'").replace("'SECRET'", f"'{secret}'").replace("2026-03-09", date)
    if engine == "ClickHouse":
        print("ClickHouse", str(chdb.query(quirk(sql), "TSVRaw")).strip().replace("\t", " ").replace("\n", "; "))
    if engine == "DuckDB":
        sql = sql.replace("USE_SSL true", "USE_SSL false").replace("s3://ctlogd/", "s3://lake2/")
        for statement in sql.split(";\n"):
            if statement.strip():
                rows = db.execute(statement).fetchall()
        print("DuckDB", "; ".join(" ".join(str(v) for v in row) for row in rows))
