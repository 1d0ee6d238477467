"""judge_grafana.py SCRATCH JSONL DASHBOARD: runs every query of a dashboard in the engine, with what Grafana puts in."""
import json, re, sys
from tables import Tables, read, statements

scratch, jsonl, dashboard = sys.argv[1:]
t = Tables(scratch)
for s in statements(read("rates.sql")):
    t.run(s)
for table in ("rates", "usage"):  # the tests' records are old
    t.run(f"ALTER TABLE {table} REMOVE TTL")
t.queue(jsonl)
flows = [json.loads(line) for line in open(jsonl, encoding="utf-8")]
ended = [f for f in flows if f["event"] == "destroy"]
first, last = min(f["time"] for f in flows)[:19] + "Z", max(f["time"] for f in flows)[:19] + "Z"
nat = next(f for f in ended if f.get("nat_src_ip") and f.get("start"))

SECONDS = 60
put = {"${host:singlequote}": "'gw1', 'gw2'", "${__to:date:iso}": last, "${address:raw}": nat["nat_src_ip"],
       "${port:raw}": "-1", "${at:raw}": nat["end"], "$__interval_s": str(SECONDS)}


def fill(sql):
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= parseDateTimeBestEffort('{first}') - 3600 AND \1 <= parseDateTimeBestEffort('{last}') + 3600", sql)
    sql = re.sub(r"\$__timeInterval\((\w+)\)", rf"toStartOfInterval(toDateTime(\1), INTERVAL {SECONDS} second)", sql)
    for k, v in put.items():
        sql = sql.replace(k, v)
    assert "$" not in sql, sql
    return sql


def check(what, got, want):
    print("ok" if got == want else "BAD", what, got, want)


d = json.load(open(dashboard, encoding="utf-8"))
for v in d["templating"]["list"]:
    if v["type"] == "query":
        check("variable " + v["name"], t.run(fill(v["query"])).split(), ["gw1"])
empty = {"Gaps"}
total = {}
for p in d["panels"]:
    for q in p.get("targets", []):
        rows = t.rows(fill(q["rawSql"]))
        total[p["title"]] = rows
        check(p["title"], bool(rows), p["title"] not in empty)
        if p["type"] == "timeseries":
            check(p["title"] + ": times ascend", [r["time"] for r in rows], sorted(r["time"] for r in rows))
for title in ("Flows that ended", "Flows by protocol", "Flows by translation"):
    check(title + ": all", round(sum(r["flows"] for r in total[title]) * SECONDS), len(ended))
check("bytes", round(sum(r["out"] + r["back"] for r in total["Traffic of flows that ended"]) * SECONDS / 8),
      sum(f.get("orig_bytes", 0) + f.get("reply_bytes", 0) for f in ended))
usage = {}
for f in ended:
    n, b = usage.get(f["src_ip"], (0, 0))
    usage[f["src_ip"]] = n + 1, b + f.get("orig_bytes", 0) + f.get("reply_bytes", 0)
check("most flows", [r["flows"] for r in total["Most flows"]], sorted((n for n, _ in usage.values()), reverse=True)[:20])
check("most traffic", [r["sent"] + r["received"] for r in total["Most traffic"]], sorted((b for _, b in usage.values()), reverse=True)[:20])
check("whois", nat["src_ip"] in {r["inside_ip"] for r in total["whois"]}, True)
check("rejects", total["Messages that could not be read"][0]["rejects"], 0)
