#!/bin/bash
# small.sh [-s SECONDS] [-r RATE] [GOGC,GOMEMLIMIT...]
#
# What the small build, which the packages for OpenWrt hold, takes: the size of its binary beside that of the whole one,
# stripped and compressed; and its resident memory after SECONDS (default 60) of RATE flows a second (default 100) that go to an
# IPFIX collector and to a file, with the configuration of the packages. Each GOGC,GOMEMLIMIT is one run; the first is
# what the packages' init script sets. Anonymous memory is what the router lacks; the pages of the file are the binary's own,
# which the kernel drops and reads again when memory is short.
#
# Needs root, gcc, go, iproute2, conntrack and xz.
set -euo pipefail
seconds=60 rate=100
while getopts s:r: o; do
    case $o in s) seconds=$OPTARG ;; r) rate=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
here=$(cd "$(dirname "$0")" && pwd)
init=$here/../packaging/openwrt/ctlogd.init
[[ $# -gt 0 ]] || set -- "$(sed -n 's/.*GOGC=\([^ ]*\) GOMEMLIMIT=\([^ ]*\)$/\1,\2/p' "$init")" 50,off 100,off 400,off
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/ctlogd-small.XXXXXX") ns=ctlogd-small-$$ pids=
cleanup() {
    for p in $pids; do kill "$p" 2>/dev/null || true; done
    wait
    ip netns del "$ns" 2>/dev/null || true
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
build small small
rm "$work/whole"

gcc -O2 -o "$work/ctflood" "$here/ctflood.c"
gcc -O2 -o "$work/sink" "$here/sink.c"
ip netns add "$ns"
in_ns() { ip netns exec "$ns" "$@"; }
in_ns sh -c 'ip link set lo up; for s in acct timestamp events; do sysctl -qw net.netfilter.nf_conntrack_$s=1; done'
# The configuration of the packages with its collector switched on, and its paths in the scratch folder.
sed -e '/^#  ipfix:/,/^#$/s/^#//' -e "s|udp://192.0.2.10:4739|udp://127.0.0.1:4739|; s|/tmp/ctlogd|$work|" \
    "$here/../packaging/openwrt/ctlogd.yaml" >"$work/ctlogd.yaml"
ip netns exec "$ns" "$work/sink" >"$work/records" & pids=$!
for setting; do
    ip netns exec "$ns" env GOGC="${setting%,*}" GOMEMLIMIT="${setting#*,}" STATE_DIRECTORY="$work" RUNTIME_DIRECTORY="$work" \
        "$work/small" run -c "$work/ctlogd.yaml" 2>"$work/log" & pid=$!
    pids+=" $pid"
    sleep 1
    in_ns "$work/ctflood" churn $((rate * seconds)) "$rate" >/dev/null
    kill -0 "$pid" || { cat "$work/log" >&2; exit 1; }
    awk -v s="$setting" '{v[$1] = $2} END {printf "GOGC,GOMEMLIMIT=%-10s VmRSS %5.1f MiB: anonymous %4.1f, file %4.1f; peak %5.1f\n",
        s, v["VmRSS:"] / 1024, v["RssAnon:"] / 1024, v["RssFile:"] / 1024, v["VmHWM:"] / 1024}' "/proc/$pid/status"
    kill "$pid"
    wait "$pid" || true
done
echo "records at the collector: $(awk '{n += $1} END {print n + 0}' "$work/records")"
