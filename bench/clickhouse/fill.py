"""fill.py DIR: reads names of files of JSON lines from standard input, puts them into the tables, and measures at each line
"measure"."""
import os, random, resource, sys, time
from tables import Tables

t = Tables(sys.argv[1])
random.seed(1)


def cpu():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime


def ask(samples, name, sql):
    times, found, burnt = [], 0, 0.0
    for s in samples[:50]:
        ip, port, at, src = s.split("\t")
        began, before = time.time(), cpu()
        out = t.run(sql.format(ip=ip, port=port, at=at, src=src))
        times.append((time.time() - began) * 1e3)
        found, burnt = found + out.count("\n"), burnt + cpu() - before
    times.sort()
    print(f"{name:12}{times[len(times) // 2]:10.1f} ms, p95 {times[len(times) * 95 // 100]:.1f} ms, {burnt / len(times) * 1e3:.1f} ms of CPU, {found / len(times):.2f} rows")


def measure(took, burnt):
    rows = int(t.one("SELECT count() FROM flows"))
    print("load        %9.2f %.2f %.2f on %d processors" % (*os.getloadavg(), os.cpu_count()))
    print(f"insert      {rows / took:10,.0f} rows a second, {burnt / rows * 1e6:.1f} us of CPU a row")
    began, before = time.time(), cpu()
    t.run("OPTIMIZE TABLE flows FINAL")
    print(f"merge       {(cpu() - before) / rows * 1e6:10.1f} us of CPU a row, all into one part a day")
    size = lambda what: int(t.one(f"SELECT {what} FROM system.parts WHERE active AND table = 'flows'"))
    every = size("sum(bytes_on_disk)")
    print(f"size        {every / rows:10.1f} bytes a row, of {rows:,} rows in {size('count()')} parts")
    inside = int(t.one("SELECT sum(bytes_on_disk) FROM system.projection_parts WHERE active AND table = 'flows'") or 0)
    print(f"  inside    {inside / rows:10.1f}")
    for row in t.one("SELECT column, sum(column_data_compressed_bytes) / %d AS b FROM system.parts_columns WHERE active AND table = 'flows' "
            "GROUP BY column HAVING b >= 0.5 ORDER BY b DESC" % rows).split("\n"):
        name, n = row.split("\t")
        print(f"  {name:15} {float(n):4.1f}")

    samples = t.one(
        "SELECT nat_src_ip, nat_src_port, addNanoseconds(assumeNotNull(start), intDiv(toUnixTimestamp64Nano(assumeNotNull(`end`)) - toUnixTimestamp64Nano(assumeNotNull(start)), 2)) AS at, src_ip "
        f"FROM flows WHERE cityHash64(flow_id) % {max(1, rows // 300)} = 0 LIMIT 300").split("\n")
    ask(samples, "whois", "SELECT * FROM whois(ip = '{ip}', port = {port}, at = '{at}', within = 0)")
    ask(samples, "  nat alone", "SELECT * FROM whois(ip = '{ip}', port = {port}, at = '{at}', within = 0) WHERE role = 'nat'")
    ask(samples, "inside, 1 m", "SELECT * FROM inside(ip = '{src}', since = '{at}', until = '{at}')")
    ask(samples, "SELECT 1", "SELECT 1")
    ask(samples, "complete", "SELECT * FROM completeness(at = '{at}', within = 0)")
    began = time.time()
    t.one("SELECT count() FROM flows FINAL")
    print(f"count FINAL {(time.time() - began) * 1e3:10.0f} ms")
    print(f"memory      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:10,} MiB at most")
    sys.stdout.flush()


took, burnt = 0.0, 0.0
for line in sys.stdin:
    if line.strip() == "measure":
        measure(took, burnt)
    else:
        began, before = time.time(), cpu()
        t.queue(line.strip())
        took, burnt = took + time.time() - began, burnt + cpu() - before
    print("done", flush=True)
