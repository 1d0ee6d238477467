#!/bin/bash
# small.sh [-s SECONDS] [-r RATE] [-m MIB] [GOGC,GOMEMLIMIT...]
#
# What the small build, which the packages for OpenWrt hold, takes: the size of its binary beside that of the whole one,
# stripped and compressed; and its resident memory after SECONDS (default 60) of RATE flows a second (default 100) that go to an
# IPFIX collector and to a file, with the configuration of the packages. Each GOGC,GOMEMLIMIT is one run; the first is what the
# packages' init script sets. Anonymous memory is what the router lacks for good; pages of the binary are dropped and read again
# where memory is short; how much of them is used at all within ten seconds is printed. So the last run, with the first setting, is in a memory cgroup of MIB (default 16), which all of its
# memory counts for, the kernel's for its sockets as well, and the pages of the binary, which nothing else has in memory.
#
# Needs root, gcc, go, iproute2, conntrack and xz.
set -euo pipefail
seconds=60 rate=100 mib=16
while getopts s:r:m: o; do
    case $o in s) seconds=$OPTARG ;; r) rate=$OPTARG ;; m) mib=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
here=$(cd "$(dirname "$0")" && pwd)
init=$here/../packaging/openwrt/ctlogd.init
[[ $# -gt 0 ]] || set -- "$(sed -n 's/.*GOGC=\([^ ]*\) GOMEMLIMIT=\([^ ]*\)$/\1,\2/p' "$init")" 50,off 100,off 400,off
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/ctlogd-small.XXXXXX") ns=ctlogd-small-$$ pids= group=
cleanup() {
    for p in $pids; do kill "$p" 2>/dev/null || true; done
    wait
    ip netns del "$ns" 2>/dev/null || true
    if [[ $group ]]; then rmdir "$group" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

build() { # NAME TAGS
    (cd "$here/.." && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -tags "$2" -o "$work/$1" ./cmd/ctlogd)
    printf '%-6s %9s stripped %9s gzip -9 %9s xz -9\n' "$1" "$(wc -c <"$work/$1")" "$(gzip -9c "$work/$1" | wc -c)" \
        "$(xz -9c "$work/$1" | wc -c)"
}
build whole ""
build small "$(sed -n 's/.*list: "openwrt.yaml", tags: "\([^"]*\)".*/\1/p' "$here/../packaging/build/main.go")"
rm "$work/whole"

gcc -O2 -o "$work/ctflood" "$here/ctflood.c"
gcc -O2 -o "$work/sink" "$here/sink.c"
ip netns add "$ns"
in_ns() { ip netns exec "$ns" "$@"; }
in_ns sh -c 'ip link set lo up; for s in acct timestamp events; do sysctl -qw net.netfilter.nf_conntrack_$s=1; done'
# The configuration of the packages with its collector switched on, and its paths in the scratch folder.
sed -e '/^#  ipfix:/,/^#$/s/^#//' -e "s|udp://192.0.2.10:4739|udp://127.0.0.1:4739|; s|/tmp/ctlogd|$work|" \
    "$here/../packaging/openwrt/ctlogd.yaml" >"$work/ctlogd.yaml"
ip netns exec "$ns" "$work/sink" >"$work/records" & sink=$! pids=$!
# run GOGC,GOMEMLIMIT NAME runs the daemon, in the cgroup if there is one, and prints what it has in memory.
run() {
    GOGC=${1%,*} GOMEMLIMIT=${1#*,} STATE_DIRECTORY=$work RUNTIME_DIRECTORY=$work sh -ec '
        if [ "$1" ]; then echo $$ >"$1/cgroup.procs"; fi
        exec ip netns exec "$3" "$2/small" run -c "$2/ctlogd.yaml"' sh "$group" "$work" "$ns" 2>"$work/log" & pid=$!
    pids+=" $pid"
    sleep 1
    in_ns "$work/ctflood" churn $((rate * seconds)) "$rate" >/dev/null
    kill -0 "$pid" || { cat "$work/log" >&2; exit 1; }
    awk -v s="$2" '{v[$1] = $2} END {printf "%-26s VmRSS %5.1f MiB: anonymous %4.1f, file %4.1f; peak %5.1f",
        s, v["VmRSS:"] / 1024, v["RssAnon:"] / 1024, v["RssFile:"] / 1024, v["VmHWM:"] / 1024}' "/proc/$pid/status"
    # fields 12 and 14, 15: pages that had to be read; CPU time
    awk -v hz="$(getconf CLK_TCK)" '{sub(/.*\) /, ""); printf "; %d pages read, %.2f s of CPU", $10, ($12 + $13) / hz}' "/proc/$pid/stat"
    echo 1 >"/proc/$pid/clear_refs"
    in_ns "$work/ctflood" churn $((rate * 10)) "$rate" >/dev/null
    awk '/^[0-9a-f]+-/ {file = $6 ~ /^\//} /^Referenced:/ && file {n += $2}
        END {printf "; of the file %.1f MiB used within 10 s\n", n / 1024}' "/proc/$pid/smaps"
    kill "$pid"
    wait "$pid" || true
}
for setting; do run "$setting" "$setting"; done
if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
    group=/sys/fs/cgroup/ctlogd-small-$$ limit=memory.max
else
    group=/sys/fs/cgroup/memory/ctlogd-small-$$ limit=memory.limit_in_bytes
fi
if mkdir "$group" 2>/dev/null && echo $((mib << 20)) >"$group/$limit"; then
    sync "$work/small"
    dd if="$work/small" iflag=nocache count=0 status=none # so that reading it counts for the cgroup
    run "$1" "$1 in $mib MiB"
else
    echo "no memory cgroup can be made here"
fi
kill "$sink"
wait "$sink" || true
echo "at the collector: $(cat "$work/records"); each of the runs sent $((rate * (seconds + 10)))"
