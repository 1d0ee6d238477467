#!/bin/bash
# live.sh [-r RATE] [-s SECONDS] [-k RUNS]
#
# Measures what it costs the daemon to be looked at. RATE flows a second (default 20,000) come and go while ctlogd writes
# them as JSON lines; CPU time of the whole daemon for each event is taken for SECONDS (default 10) with nobody looking,
# then with a terminal that shows ctlogd top, another that shows ctlogd tap, and the page, asked for every 2 s as a
# browser does. This is done RUNS times (default 3). Printed are the medians, their ratio, what is lost in the log, and
# what the terminal with the tap was too slow for.
#
# Needs root, gcc, go, iproute2, curl and script (util-linux, bsdutils).
set -euo pipefail
rate=20000 seconds=10 runs=3
while getopts r:s:k: o; do
    case $o in r) rate=$OPTARG ;; s) seconds=$OPTARG ;; k) runs=$OPTARG ;; *) exit 2 ;; esac
done
[[ $(id -u) == 0 ]] || { echo "live.sh: needs root, for network namespaces and conntrack events" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/ctlogd-live.XXXXXX") ns=ctlogd-live-$$
pid= flood= lookers=()
cleanup() {
    for p in "${lookers[@]}" $flood $pid; do kill -9 "$p" 2>/dev/null || true; done
    ip netns del "$ns" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

gcc -O2 -o "$work/ctflood" "$here/ctflood.c"
(cd "$here/.." && go build -o "$work/ctlogd" ./cmd/ctlogd)
ip netns add "$ns"
in_ns() { ip netns exec "$ns" "$@"; }
in_ns sh -c 'ip link set lo up
    for s in acct timestamp events; do sysctl -qw net.netfilter.nf_conntrack_$s=1; done'
cat >"$work/ctlogd.yaml" <<END
log: {level: warn}
outputs: {jsonl: [{path: $work/flows.jsonl}]}
metrics: {listen: "127.0.0.1:9469"}
live: {socket: $work/ctlogd.sock}
END
cpu() { cat /proc/"$pid"/task/*/schedstat | awk '{ s += $1 } END { printf "%.0f", s }'; } # ns, of all threads
events() { in_ns curl -s http://127.0.0.1:9469/metrics | awk '/^ctlogd_events_total\{event="destroy"\}/ { printf "%.0f", $2 }'; }
measure() { # NAME
    local c0 c1 e0 e1
    e0=$(events) c0=$(cpu)
    sleep "$seconds"
    c1=$(cpu) e1=$(events)
    awk -v name="$1" -v c=$((c1 - c0)) -v e=$((e1 - e0)) -v s="$seconds" \
        'BEGIN { printf "%s %.3f %.0f\n", name, c / e / 1000, e / s }' | tee -a "$work/results" >&2
}
terminal() { # NAME COMMAND...: on a terminal of its own, what it shows in NAME
    (exec script -qfec "stty cols 160 rows 50; exec ${*:2}" /dev/null </dev/null >"$work/$1" 2>&1) & lookers+=($!)
}

for run in $(seq "$runs"); do
    rm -f "$work/flows.jsonl"
    (exec ip netns exec "$ns" "$work/ctlogd" run -c "$work/ctlogd.yaml" 2>>"$work/stderr") & pid=$!
    for _ in $(seq 100); do [[ -S $work/ctlogd.sock ]] && break; sleep 0.1; done
    flows=$((rate * (seconds * 2 + 5)))
    (exec ip netns exec "$ns" "$work/ctflood" churn "$flows" "$rate" >/dev/null) & flood=$!
    sleep 2
    measure alone
    terminal top "$work/ctlogd" top --socket "$work/ctlogd.sock"
    terminal tap "$work/ctlogd" tap --socket "$work/ctlogd.sock"
    (while :; do in_ns curl -s -o /dev/null http://127.0.0.1:9469/; sleep 2; done) & lookers+=($!)
    sleep 2
    measure looked-at
    wait "$flood"
    flood=
    sleep 1
    for p in "${lookers[@]}"; do kill "$p" 2>/dev/null || true; done
    wait "${lookers[@]}" 2>/dev/null || true
    lookers=()
    kill "$pid"
    wait "$pid" || true
    pid=
    [[ $(wc -c <"$work/top") -gt 10000 ]] || { echo "live.sh: top shows nothing: $(tail -n 3 "$work/top")" >&2; exit 1; }
    shown=$(grep -c destroy "$work/tap" || true)
    missed=$(grep -o '[0-9]* records not shown' "$work/tap" | awk '{ s += $1 } END { print s + 0 }' || true)
    echo "run $run of $runs: the log has $(wc -l <"$work/flows.jsonl") of $flows; the tap showed $shown and told of $missed more" |
        tee -a "$work/said" >&2
done
echo "$rate flows/s, median of $runs; $(nproc) CPUs, Linux $(uname -r)"
awk '
function median(list, count, i, j, v, a) {
    count = split(list, a, " ")
    for (i = 2; i <= count; i++) {
        v = a[i]
        for (j = i - 1; j > 0 && a[j] > v + 0; j--) a[j + 1] = a[j]
        a[j + 1] = v
    }
    return (a[int((count + 1) / 2)] + a[int(count / 2) + 1]) / 2
}
{ us[$1] = us[$1] " " $2; if ($1 == "alone") alone = $2; else ratio = ratio " " $2 / alone }
END { printf "alone %.2f us/event, looked at %.2f us/event, ratio %.2f\n", median(us["alone"]), median(us["looked-at"]), median(ratio) }
' "$work/results"
cat "$work/said"
