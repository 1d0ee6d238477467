"""judge_whois.py SCRATCH JSONL: asks random questions, and answers them by looking at every record."""
import calendar, collections, json, os, random, re, sys, time
from tables import Tables, read, statements

PARSED = "parseDateTime64BestEffort({at:String}, 9, 'UTC')"
CANONICAL = "if(isIPv6String({ip:String}), toString(toIPv6OrDefault({ip:String})), {ip:String})"

scratch, jsonl = sys.argv[1:]
questions = int(os.environ.get("QUESTIONS", "2000"))
records = [json.loads(line) for line in open(jsonl, encoding="utf-8")]
random.seed(1)
bad = 0


def check(what, got, want):
    global bad
    print("ok" if got == want else "BAD", what, got, "" if got == want else f"want {want}")
    bad += got != want


def first(r, *keys):
    return next((r[k] for k in keys if k in r), None)


def roles(r):
    """As whom a flow has an address and a port: role, address, port, inside address, inside port."""
    if "src_ip" not in r or r["event"] not in ("destroy", "open"):
        return
    port = first(r, "src_port", "icmp_id", "gre_key")
    if "nat_src_ip" in r:
        yield "nat", r["nat_src_ip"], first(r, "nat_src_port", "nat_icmp_id", "icmp_id", "nat_gre_key", "gre_key"), r["src_ip"], port
    else:
        yield "own", r["src_ip"], port, r["src_ip"], port
    if "nat_dst_ip" in r:
        yield "forwarded", r["dst_ip"], r.get("dst_port"), r["nat_dst_ip"], r.get("nat_dst_port")


had = collections.defaultdict(list)
for n, r in enumerate(records):
    for role, ip, port, inside, inside_port in roles(r):
        had[ip].append((port, role, inside, inside_port, r, r.get("flow_id", n)))


def ns(text):
    return int(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))) * 10**9 + int(text[20:29])


def text(t):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(t // 10**9)) + f".{t % 10**9:09d}Z"


def oracle(ip, port, at, within):
    best = {}
    for p, role, inside, inside_port, r, flow in had[ip]:
        if port not in (-1, p) or r["time"] < at or "start" in r and r["start"] > text(ns(at) + within * 10**9):
            continue
        old = best.get((role, flow))
        if old is None or (r["event"], old[4]) < (old[5], r["time"]):
            best[role, flow] = (role, inside, inside_port, r.get("start"), r["time"], r["event"], r["proto"], r.get("flow_id", ""))
    return sorted(map(str, best.values()))


t = Tables(scratch)
t.queue(jsonl)
t.queue(jsonl)  # all of it comes twice
t.run("OPTIMIZE TABLE flows")

flat = [(ip, *entry) for ip, entries in had.items() for entry in entries]
ask = []
for _ in range(questions):
    ip, port, _, _, _, r, _ = random.choice(flat)
    begin, end = sorted((ns(r.get("start", r["time"])), ns(r["time"])))
    at = random.choice([begin, begin - 1, end, end + 1, random.randint(begin, end), random.randint(begin - 10**11, end + 10**11)])
    ask.append((ip, random.choice([port, port, port, port, -1, 40000, 1]) if port is not None else -1, text(at), random.choice([0, 0, 1, 60])))
COLUMNS = "role, inside_ip, inside_port, start, time, event, proto, flow_id"
want = [oracle(*q) for q in ask]


def held(what, first, rows):
    got = collections.defaultdict(list)
    for line in rows.splitlines():
        n, *row = json.loads(line)
        got[n].append(str(tuple(row)))
    wrong = [n for n in range(first) if sorted(got[n]) != want[n]]
    for n in wrong[:3]:
        print(ask[n], "\n got", sorted(got[n])[:5], "\nwant", want[n][:5])
    check(f"{what}: of {first} questions are answered otherwise", len(wrong), 0)


# Some as they are asked, several in a query, as most of one's time is its planning.
few, at_once = max(25, questions // 20), 25
out = ""
for done in range(0, few, at_once):
    out += t.run(" UNION ALL ".join(f"SELECT {done + n} AS n, {COLUMNS} FROM whois(ip = '{ip}', port = {port}, at = '{at}', within = {within})"
        for n, (ip, port, at, within) in enumerate(ask[done:min(done + at_once, few)])) + " SETTINGS date_time_output_format = 'iso'", "JSONCompactEachRow")
held("view", few, out)

# All of them at once: the text of the view, with a table of questions where it has its parameters.
t.run("CREATE TABLE questions (n UInt32, q_ip String, q_port Int32, q_at DateTime64(9, 'UTC'), q_within UInt32) ENGINE = Memory")
t.run("INSERT INTO questions VALUES " + ", ".join(f"({n}, '{ip}', {port}, '{at[:-1].replace('T', ' ')}', {within})" for n, (ip, port, at, within) in enumerate(ask)))
body = next(s for s in statements(read("views.sql")) if s.startswith("CREATE VIEW whois AS")).removeprefix("CREATE VIEW whois AS")
for old, new, times in ((PARSED, "q_at", 3), (CANONICAL, "q_ip", 3), ("{port:Int32}", "q_port", 7), ("{within:UInt32}", "q_within", 1),
        ("FROM flows\n", "FROM flows CROSS JOIN questions\n", 3), ("LIMIT 1 BY role", "LIMIT 1 BY n, role", 1), ("SELECT role", "SELECT n, role", 1),
        ("twin, host", "n, q_at, q_within, twin, host", 3)):
    assert body.count(old) == times, (old, body.count(old))
    body = body.replace(old, new)
held("text of the view", questions, t.run(f"SELECT n, {COLUMNS} FROM ({body}) SETTINGS date_time_output_format = 'iso'", "JSONCompactEachRow"))
found, several = sum(map(len, want)), sum(len(w) > 1 for w in want)
check("answers", (found > questions / 2, several > questions / 20), (True, True))
print(questions, "questions,", found, "rows,", several, "with several")
same = t.one("SELECT count() FROM whois(ip = '2001:DB8:0:0::0', port = -1, at = '2026-03-09 00:00:00', within = 3600)")
check("an address in another spelling", same != "0" and same == t.one("SELECT count() FROM whois(ip = '2001:db8::', port = -1, at = '2026-03-09 00:00:00', within = 3600)"), True)

# What an inside address did.
ip = next(r["src_ip"] for r in records if "nat_src_ip" in r)
since, until = "2026-03-09T00:00:20.000000000Z", "2026-03-09T00:00:40.000000000Z"
alive = {r.get("flow_id", n) for n, r in enumerate(records) if r.get("src_ip") == ip and r["event"] in ("destroy", "open")
    and r["time"] >= since and r.get("start", "") <= until}
check("inside", t.one(f"SELECT count() FROM inside(ip = '{ip}', since = '{since}', until = '{until}')"), str(len(alive)))

# What a subscriber did, under all addresses; and whose flow it was.
one = next(r for r in records if "subscriber" in r and "nat_src_ip" in r and r["event"] == "destroy")
alive = {r.get("flow_id", n) for n, r in enumerate(records) if r.get("subscriber") == one["subscriber"] and r["event"] in ("destroy", "open")
    and r["time"] >= since and r.get("start", "") <= until}
check("subscriber", (t.one(f"SELECT count() FROM of_subscriber(id = '{one['subscriber']}', since = '{since}', until = '{until}')"), len(alive) > 3), (str(len(alive)), True))
check("whose", t.one(f"SELECT subscriber, subscriber_name FROM whois(ip = '{one['nat_src_ip']}', port = {first(one, 'nat_src_port', 'nat_icmp_id', 'icmp_id')}, at = '{one['end']}', within = 0) "
    f"WHERE flow_id = '{one['flow_id']}'"), one["subscriber"] + "\t" + one["subscriber_name"])

# It is an index that finds them among many others.
t.run("""INSERT INTO flows (time, `end`, event, flow_id, src_ip, src_port, dst_ip, dst_port, nat, nat_src_ip, nat_src_port, subscriber)
    SELECT toDateTime64('2026-03-09 01:00:00', 9, 'UTC') AS t, t, 'destroy', toString(number), concat('2001:db8:1::', hex(number % 16384 + 4096)), number % 60000,
    '192.0.2.1', 443, if(number % 2 = 0, 'snat', 'none'), if(number % 2 = 0, concat('203.0.114.', toString(number % 100)), ''), number % 50000, concat('s', toString(number % 16384)) FROM numbers(200000)""")
t.run("OPTIMIZE TABLE flows FINAL")
for role, ip, index in (("nat", "203.0.114.8", "PrimaryKey"), ("own", "2001:db8:1::1b01", "Name: inside"), ("forwarded", "203.0.112.1", "Name: forwarded")):
    plan = t.run("EXPLAIN indexes = 1, projections = 1 SELECT * FROM whois(ip = '%s', port = 40001, at = '2026-03-09 00:00:30', within = 0) WHERE role = '%s' "
        "SETTINGS min_table_rows_to_use_projection_index = 0" % (ip, role), "TSVRaw")
    _, _, after = plan.partition(index)
    granules = re.search(r"(?:Granules|Marks): (\d+)", after)
    check(f"{role} is found by {index}", granules is not None and int(granules[1]) <= 2, True)
    if granules is None or int(granules[1]) > 2:
        print(plan)
plan = t.run("EXPLAIN indexes = 1, projections = 1 SELECT * FROM of_subscriber(id = 's7', since = '2026-03-09 00:00:30', until = '2026-03-10') "
    "SETTINGS min_table_rows_to_use_projection_index = 0", "TSVRaw")
granules = re.search(r"(?:Granules|Marks): (\d+)", plan.partition("Name: subscribers")[2])
check("a subscriber is found by a projection", granules is not None and int(granules[1]) <= 2, True)
if granules is None:
    print(plan)
sys.exit(bad != 0)
