#!/bin/bash
# compare.sh [-n FLOWS] [-p burst|churn] [-r RATE] [-k RUNS] [-o ROW,ROW...] [-b NAME=BINARY]... [NAME=COMMAND...]
#
# Measures what it costs to log conntrack events: ctlogd against ulogd2 and against a bare drain, in one run, with the
# same real kernel events. Each consumer runs in turn in a network namespace; the whole is done RUNS times (default 5)
# and for each row the median is printed:
#   us/event   CPU time of the consumer for each flow
#   x nap      the same as a ratio to `drain-nap`, which reads with recvmmsg, throws away and naps 1 ms: the floor, and what
#              budgets are ratios to, as it moves less between processors than
#   x drain    the same as a ratio to `drain`, which does not nap, so that nearly each event wakes it
#   records    what it delivered, of FLOWS (default 300,000)
#   peak       the most resident memory it ever had
#   flows/s    the rate that the kernel kept while it listened, which is the price that the packet path pays, also as a
#              ratio to `drain-nap`; `nobody` shows it with no listener
# Patterns:
#   burst: FLOWS entries are created, then the whole table is flushed while the consumer listens.
#   churn: FLOWS entries are created and deleted, RATE a second or as fast as the kernel goes, while it listens.
# Rows:
#   nobody, drain, drain-nap          no consumer, and the two drains
#   ulogd-json, ulogd-ipfix           Debian's packages ulogd2 and ulogd2-json
#   ctlogd-json, ctlogd-ipfix         a file of JSON lines; IPFIX over UDP to a sink
#   ctlogd-ecs, -ocsf, -cim, -ulogd2, -cef    files in these formats
#   ctlogd-subscribers                the same as ctlogd-json, with a CSV file of 1,000,000 subscribers, of which 1,506 make the
#                                     flows; read before the measurement begins
#   ctlogd-archive                    an archive that seals nothing meanwhile
#   ctlogd-archive-sealed             the same with the CPU time of the processes that make its segments, and what is left
#                                     then in the same way
#   ctlogd-archive-sealing            one that makes a segment of each 100,000 records meanwhile, and what the daemon takes
#                                     then, without those processes: -p churn -r 20000 -n 1000000 for its memory
#   ctlogd-syslog                     the flat format as syslog over TCP, to a socat
#   ctlogd-kafka                      to a broker in the namespace, whose CPU time is not counted (where Kafka's jars are in
#                                     the cache, see integration/broker/fetch.sh)
#   ctlogd-both                       the same, and a file of JSON lines as well
#   ctlogd-spooled                    ctlogd-kafka with the default queue, much smaller than the burst, and a spool behind it
# Options:
#   -o ROW,ROW...    only these rows, drain-nap for the ratios among them
#   -b NAME=BINARY   another ctlogd, an older one say: beside each ctlogd-ROW goes a NAME-ROW, at once behind it and in each
#                    second run before it, with the same configuration; where it refuses that, the row is left out. Paired
#                    rows of one run can be compared where the machine is not quiet.
#   NAME=COMMAND     one more row: COMMAND runs in a scratch folder, and the lines that it writes there to standard output
#                    and *.json* files are its records; NAME-ipfix sends its records to udp://127.0.0.1:4739.
# $BENCH_DIR (default /var/tmp) is where the scratch folder is made, so it says which disk is measured.
#
# Needs root, gcc, go, iproute2 and conntrack. The limits of the conntrack table, which are the machine's, are raised
# and put back.
set -euo pipefail
n=300000 pattern=burst rate= runs=5 only= others=()
while getopts n:p:r:k:o:b: o; do
    case $o in
        n) n=$OPTARG ;; p) pattern=$OPTARG ;; r) rate=$OPTARG ;; k) runs=$OPTARG ;; o) only=,$OPTARG, ;;
        b)
            [[ $OPTARG == ?*=?* ]] || { echo "compare.sh: -b $OPTARG: write NAME=BINARY" >&2; exit 2; }
            [[ -x ${OPTARG#*=} ]] || { echo "compare.sh: -b $OPTARG: no such program" >&2; exit 2; }
            others+=("${OPTARG%%=*}=$(realpath "${OPTARG#*=}")")
            ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[[ $pattern == burst || $pattern == churn ]] || { echo "compare.sh: no pattern $pattern; use burst or churn" >&2; exit 2; }
[[ $(id -u) == 0 ]] || { echo "compare.sh: needs root, for network namespaces and conntrack events" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/ctlogd-bench.XXXXXX") ns=ctlogd-bench-$$
# Two that raise the limits at once would put back each other's: wait for the other, bench or integration test.
exec 9</proc/sys/net/netfilter/nf_conntrack_max
flock 9
max=$(sysctl -n net.netfilter.nf_conntrack_max) buckets=$(sysctl -n net.netfilter.nf_conntrack_buckets)
pid= sink= kafka= receiver=
cleanup() {
    for p in $pid $sink $kafka $receiver; do kill -9 "$p" 2>/dev/null || true; done
    ip netns del "$ns" 2>/dev/null || true
    sysctl -qw net.netfilter.nf_conntrack_max="$max" net.netfilter.nf_conntrack_buckets="$buckets" || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

for tool in ctflood drain sink; do gcc -O2 -o "$work/$tool" "$here/$tool.c"; done
(cd "$here/.." && go build -o "$work/ctlogd" ./cmd/ctlogd)
plugin=$(find /usr/lib -name ulogd_inpflow_NFCT.so 2>/dev/null | head -1)
ip netns add "$ns"
sysctl -qw net.netfilter.nf_conntrack_max=4000000 net.netfilter.nf_conntrack_buckets=1048576
in_ns() { ip netns exec "$ns" "$@"; }
in_ns sh -c 'ip link set lo up
    for s in acct timestamp events; do sysctl -qw net.netfilter.nf_conntrack_$s=1; done'
hz=$(getconf CLK_TCK)
ticks() { awk '{sub(/.*\) /, ""); print $12 + $13}' "/proc/$1/stat" 2>/dev/null || echo 0; }

# settled PID waits until the process has used no CPU for a second, a minute at most, and prints its ticks.
settled() {
    local now prev= quiet=0
    for _ in $(seq 600); do
        sleep 0.1
        now=$(ticks "$1")
        if [[ $now == "$prev" ]]; then
            quiet=$((quiet + 1))
            if [[ $quiet -ge 10 ]]; then break; fi
        else
            quiet=0
        fi
        prev=$now
    done
    echo "$now"
}

# chosen ROW... says whether one of them is to be measured.
chosen() {
    local row
    for row; do if [[ -z $only || $only == *,$row,* ]]; then return 0; fi; done
    return 1
}

# row NAME COMMAND... appends "NAME us/event records peak-KiB flows/s" to the results.
row() {
    local name=$1 dir=$work/run/$1 kind=
    case $1 in *-*) kind=${1#*-} ;; esac
    shift
    rm -rf "$dir/out"
    mkdir -p "$dir/out"
    in_ns conntrack -F >/dev/null 2>&1
    (exec ip netns exec "$ns" "$work/sink" >"$dir/sink") & sink=$!
    if [[ $pattern == burst ]]; then in_ns "$work/ctflood" create "$n" >/dev/null; fi
    (cd "$dir/out" && exec ip netns exec "$ns" bash -c "exec $*" >stdout 2>"$dir/stderr") & pid=$!
    sleep 2
    if ! kill -0 "$pid" 2>/dev/null; then
        echo "$name did not start: $(tail -n 1 "$dir/stderr")" >&2
        kill "$sink" 2>/dev/null || true
        wait "$pid" "$sink" 2>/dev/null || true
        pid= sink=
        return
    fi
    local before after speed sealing=0
    before=$(settled "$pid") # a start reads the whole table, for a second or more
    if [[ $pattern == burst ]]; then
        local t0 t1
        t0=$(date +%s%N); in_ns conntrack -F >/dev/null 2>&1; t1=$(date +%s%N)
        speed=$((n * 1000000 / ((t1 - t0) / 1000)))
    else
        speed=$(in_ns "$work/ctflood" churn "$n" $rate) speed=${speed##*= } speed=${speed%/s}
    fi
    after=$(settled "$pid")
    local peak records
    peak=$(awk '/VmHWM/{print $2}' "/proc/$pid/status" 2>/dev/null || echo 0)
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    if [[ $kind == archive* ]]; then
        records=$(find "$dir/out" -name '*.rows' -o -name '*.parquet' | xargs -r "$work/ctlogd" cat | grep -c '"event":"destroy"' || true)
    fi
    if [[ $kind == archive-sealed ]]; then
        sealing=$(seal "$dir/out")
    fi
    kill "$sink" 2>/dev/null || true
    wait "$sink" 2>/dev/null || true
    pid= sink=
    case $name in
        drain | drain-nap) records=$(sed -n 's/^events=\([0-9]*\).*/\1/p' "$dir/out/stdout") ;;
        *-kafka | *-both | *-spooled) records=$(in_ns kcat -C -e -q -b 127.0.0.1:9092 -t "$name" -f '\n' | wc -l) ;;
        *-syslog) records=$(wc -l <"$work/syslog" || echo 0) ;;
        *-archive*) ;;
        *-ipfix) records=$(sed -n 's/^records=\([0-9]*\).*/\1/p' "$dir/sink") ;;
        *) records=$(find "$dir/out" -type f \( -name '*.json*' -o -name stdout \) -exec cat {} + | wc -l) ;;
    esac
    awk -v name="$name" -v t=$((after - before + sealing)) -v hz="$hz" -v n="$n" -v rec="$records" -v peak="$peak" -v speed="$speed" \
        'BEGIN { printf "%s %.3f %d %d %d\n", name, t / hz * 1e6 / n, rec, peak, speed }' >>"$work/results.$run"
}

# seal FOLDER makes segments of its row logs as the daemon's child does, and prints how many ticks that took.
seal() {
    local file took=0 began me=$BASHPID
    while read -r file; do
        began=$(children "$me")
        GOMAXPROCS=1 GOMEMLIMIT=96MiB GOGC=20 "$work/ctlogd" seal "$file" >/dev/null
        took=$((took + $(children "$me") - began))
    done < <(find "$1" -name '*.rows')
    echo "$took"
}
# children prints the ticks of the processes that process $1 has waited for.
children() { awk '{sub(/.*\) /, ""); print $14 + $15}' "/proc/$1/stat"; }

ulogd() { # KIND
    chosen "ulogd-$1" || return 0
    if [[ -z $plugin ]] || ! command -v ulogd >/dev/null; then
        if [[ $run == 1 ]]; then echo "ulogd-$1 left out: install ulogd2 and ulogd2-json" >&2; fi
        return
    fi
    mkdir -p "$work/run/ulogd-$1"
    sed -e "s#@DIR@#$work/run/ulogd-$1/out#; s#@PLUGINS@#${plugin%/*}#" "$here/ulogd-$1.conf.in" >"$work/ulogd-$1.conf"
    row "ulogd-$1" ulogd -c "$work/ulogd-$1.conf"
}

# ctlogd KIND OUTPUT [AROUND] makes a row for each ctlogd. In OUTPUT, @NAME@ stands for the row's name and @DIR@ for
# its folder. AROUND, if given, is called with begin before and with end after.
ctlogd() {
    chosen "ctlogd-$1" || return 0
    local binary name output binaries=("ctlogd=$work/ctlogd" "${others[@]}")
    if ((run % 2 == 0)); then # whoever comes first may pay for a machine that has cooled down, or gain by it
        binaries=()
        for binary in "ctlogd=$work/ctlogd" "${others[@]}"; do binaries=("$binary" "${binaries[@]}"); done
    fi
    for binary in "${binaries[@]}"; do
        name=${binary%%=*}-$1
        output=${2//@DIR@/$work/run/$name/out}
        cat >"$work/$name.yaml" <<END
log: {level: warn}
input:
  conntrack: {events: [destroy], delivery: reliable}
outputs:
  ${output//@NAME@/$name}
END
        ${3:-:} begin
        row "$name" "${binary#*=}" run -c "$work/$name.yaml"
        ${3:-:} end
    done
}

# receive has what comes by syslog written to a file, whose lines are the records; socat's CPU time is not counted.
receive() { # begin|end
    if [[ $1 == begin ]]; then
        rm -f "$work/syslog"
        (exec ip netns exec "$ns" socat -u -b 262144 TCP-LISTEN:5514,bind=127.0.0.1,reuseaddr OPEN:"$work/syslog",creat,append) & receiver=$!
    else
        kill "$receiver" 2>/dev/null || true
        wait "$receiver" 2>/dev/null || true
        receiver=
    fi
}

# Kafka is there for these rows alone: a fresh one for each run.
kafka() {
    chosen ctlogd-kafka ctlogd-both ctlogd-spooled || return 0
    if ! command -v java >/dev/null || ! command -v kcat >/dev/null || [[ -z $jars ]]; then
        if [[ $run == 1 ]]; then echo "ctlogd-kafka left out: install java and kcat, and run integration/broker/fetch.sh" >&2; fi
        return
    fi
    rm -rf "$work/kafka"
    (exec ip netns exec "$ns" "$here/kafka.sh" "$work/kafka" 9092 "$jars" >"$work/kafka.log" 2>&1) & kafka=$!
    local out="topic: @NAME@, brokers: ['127.0.0.1:9092'], create_topic: {partitions: 12, replication: 1}"
    for _ in $(seq 60); do
        if in_ns kcat -L -m 1 -b 127.0.0.1:9092 >/dev/null 2>&1; then break; fi
        sleep 1
    done
    # The broker takes less than the flush makes: the queue holds the difference, or the spool does.
    local held="queue: $((n + n / 4 + 65536))"
    ctlogd kafka "kafka: [{$out, $held}]"
    ctlogd both "kafka: [{$out, $held}]
  jsonl: [{path: @DIR@/flows.jsonl}]"
    ctlogd spooled "kafka: [{$out, spool: {path: @DIR@/spool}}]"
    kill -9 "$kafka" 2>/dev/null || true
    wait "$kafka" 2>/dev/null || true
    kafka=
}
jars=$(find "${XDG_CACHE_HOME:-$HOME/.cache}/ctlogd" -maxdepth 1 -name 'kafka-*' 2>/dev/null | head -n 1 || true)

if chosen ctlogd-subscribers; then # those of ctflood's flows are among them
    awk 'BEGIN { for (a = 0; a < 251; a++) for (b = 0; b < 16; b++) for (c = 1; c < 250; c++) printf "10.%d.%d.%d,,,customer-%d,\n", a, b, c, ++n }' >"$work/subscribers.csv"
fi
echo "$n flows, $pattern, median of $runs; $(nproc) CPUs, Linux $(uname -r)"
for run in $(seq "$runs"); do
    echo "run $run of $runs" >&2
    if chosen nobody; then row nobody sleep 1000; fi
    if chosen drain; then row drain "$work/drain" 64; fi
    if chosen drain-nap; then row drain-nap "$work/drain" 64 1000; fi
    ulogd json
    ulogd ipfix
    ctlogd json 'jsonl: [{path: @DIR@/flows.json}]'
    ctlogd subscribers "jsonl: [{path: @DIR@/flows.json}]
enrich: {subscribers: [{type: csv, path: $work/subscribers.csv}]}"
    ctlogd ipfix 'ipfix: [{address: "udp://127.0.0.1:4739"}]'
    for format in ecs ocsf cim ulogd2 cef; do
        ctlogd $format "jsonl: [{path: @DIR@/flows.json, format: $format}]"
    done
    ctlogd archive 'archive: [{path: @DIR@/archive, segment_records: 4000000}]'
    ctlogd archive-sealed 'archive: [{path: @DIR@/archive, segment_records: 4000000}]'
    ctlogd archive-sealing 'archive: [{path: @DIR@/archive, segment_records: 100000}]'
    ctlogd syslog 'syslog: [{address: "tcp://127.0.0.1:5514", framing: lf}]' receive
    kafka
    for consumer in "$@"; do row "${consumer%%=*}" "${consumer#*=}"; done
done

# Ratios are taken within each run, against the drain of that run, and their median is shown.
awk -v flows="$n" '
function median(list, count, i, j, v, a) {
    count = split(list, a, " ")
    for (i = 2; i <= count; i++) {
        v = a[i]
        for (j = i - 1; j > 0 && a[j] > v + 0; j--) a[j + 1] = a[j]
        a[j + 1] = v
    }
    return count ? (a[int((count + 1) / 2)] + a[int(count / 2) + 1]) / 2 : 0
}
FNR == 1 { run++ }
{
    if (!($1 in cost)) order[++rows] = $1
    us[run, $1] = $2
    cost[$1] = cost[$1] " " $2
    records[$1] = records[$1] " " $3
    if (!($1 in least) || $3 < least[$1]) least[$1] = $3
    if ($4 > peak[$1]) peak[$1] = $4
    rate[run, $1] = $5
    speed[$1] = speed[$1] " " $5
}
END {
    printf "%-21s %9s %8s %8s %9s %9s %10s %9s %8s\n", "", "us/event", "x nap", "x drain", "records", "least", "peak MiB", "flows/s", "x nap"
    for (i = 1; i <= rows; i++) {
        r = order[i]
        for (k = 1; k <= run; k++) if ((k, r) in us) {
            if (us[k, "drain-nap"]) nap[r] = nap[r] " " us[k, r] / us[k, "drain-nap"]
            if (us[k, "drain"]) ratio[r] = ratio[r] " " us[k, r] / us[k, "drain"]
            if (rate[k, "drain-nap"]) path[r] = path[r] " " rate[k, r] / rate[k, "drain-nap"]
        }
        printf "%-21s %9.2f %8.2f %8.2f %9d %8.2f%% %10.1f %9d %8.2f\n", r, median(cost[r]), median(nap[r]), median(ratio[r]), median(records[r]), \
            100 * least[r] / flows, peak[r] / 1024, median(speed[r]), median(path[r])
    }
}' "$work"/results.*
