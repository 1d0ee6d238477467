#!/bin/bash
# clickhouse.sh [RECORDS [RATE]]: what the tables of deploy/clickhouse cost and how fast they answer, in ClickHouse embedded in
# Python (chdb), on a trace of a carrier-grade NAT (20,000 subscribers, 256 public addresses, 60,000 servers). RECORDS is
# 1000000 by default. RATE is how many flows end in a second of the trace, 5000 by default; 1 spreads a million over twelve
# days, so over twelve parts.
#
# The folder is BENCH_DIR, or one in /var/tmp; it is removed afterwards unless BENCH_KEEP is set.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${BENCH_DIR:-$(mktemp -d /var/tmp/ctlogd-clickhouse.XXXXXX)}
[[ -n ${BENCH_KEEP:-} ]] || trap 'rm -rf "$dir"' EXIT
go build -o "$dir/bench" ./bench/clickhouse
grep -m1 'model name' /proc/cpuinfo || true
"$dir/bench" -dir "$dir" -records "${1:-1000000}" -rate "${2:-5000}"
