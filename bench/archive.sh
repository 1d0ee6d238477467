#!/bin/bash
# archive.sh [RECORDS]: what the archive costs and how fast it answers, on a trace of a carrier-grade NAT (20,000
# subscribers, 256 public addresses, 60,000 servers, one flow in 300 longer than an hour; 5,000 ends a second).
# RECORDS is 10000000 by default; 1000000 is a quick look, 100000000 takes half an hour and 10 GB.
#
# The folder is BENCH_DIR, or one in /var/tmp; it is removed afterwards unless BENCH_KEEP is set.
set -euo pipefail
cd "$(dirname "$0")/.."
records=${1:-10000000}
dir=${BENCH_DIR:-$(mktemp -d /var/tmp/ctlogd-archive.XXXXXX)}
[[ -n ${BENCH_KEEP:-} ]] || trap 'rm -rf "$dir"' EXIT
go build -o "$dir/bench" ./bench/archive
grep -m1 'model name' /proc/cpuinfo || true
"$dir/bench" -dir "$dir/archive" -records "$records"
go build -o "$dir/ctlogd" ./cmd/ctlogd
"$dir/bench" -dir "$dir/archive" -records "$records" -whois "$dir/ctlogd"
TIMEFORMAT='verify: %R s, of which %U + %S s of CPU'
time "$dir/ctlogd" verify "$dir/archive" | sed -n 2p
