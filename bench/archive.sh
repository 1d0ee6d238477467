#!/bin/bash
# archive.sh [RECORDS]: what the archive costs and how fast it answers, on a trace of a carrier-grade NAT (20,000
# subscribers, 256 public addresses, 60,000 servers, one flow in 300 longer than an hour, a checkpoint each hour; the trace
# lasts 20,000 seconds). Beside it DuckDB on the same files, and nfdump on the same flows, which nfcapd got by IPFIX.
#
# RECORDS is 10000000 by default, which takes some five minutes, two of them for nfdump, and 2 GB; 1000000 is a quick look,
# 100000000 takes half an hour and 12 GB (run it under nice). As root, cold means that the page cache was emptied before each
# question.
#
# What stands in no segment yet, at the end, DuckDB does not see: so a question may have no answer there.
#
# $BENCH_DIR (default /var/tmp) is where the scratch folder is made, so it says which disk is measured; the folder is removed
# afterwards unless BENCH_KEEP is set. SEGMENTS is how many small segments the large catalog has (10000), FLOWS how many flows
# nfdump gets at most (10000000), ASK how many questions of a kind there are (100). DuckDB is used if python3 has it, or PYTHON,
# and nfdump and nfcapd if they are installed; what is left out is told.
#
# What the daemon takes besides is in rows of bench/compare.sh: ctlogd-archive, ctlogd-archive-sealed and ctlogd-archive-sealing.
set -euo pipefail
cd "$(dirname "$0")/.."
records=${1:-10000000}
segments=${SEGMENTS:-10000}
flows=${FLOWS:-10000000}
ask=${ASK:-100}
[[ $records =~ ^[0-9]+$ && $records -ge 1000000 ]] || { echo "archive.sh: $records: write a number of records, 1000000 at least: a segment has so many" >&2; exit 2; }
dir=$(mktemp -d "${BENCH_DIR:-/var/tmp}/ctlogd-archive.XXXXXX")
capd=
tidy() {
	if [[ -n $capd ]]; then
		kill "$capd" 2>/dev/null || true
		wait "$capd" 2>/dev/null || true
	fi
	if [[ -n ${BENCH_KEEP:-} ]]; then echo "kept      $dir" >&2; else rm -rf "$dir"; fi
}
trap tidy EXIT
trap 'exit 130' INT TERM
go build -o "$dir/bench" ./bench/archive
go build -o "$dir/ctlogd" ./cmd/ctlogd
python=${PYTHON:-}
for p in "$python" "${XDG_CACHE_HOME:-$HOME/.cache}/ctlogd-engines/venv/bin/python" python3; do
	if [[ -n $p ]] && "$p" -c 'import duckdb' 2>/dev/null; then
		python=$p
		break
	fi
done

grep -m1 'model name' /proc/cpuinfo || true
echo "load      $(cut -d' ' -f1-3 /proc/loadavg) on $(nproc) processors"
echo "== $records records"
large=(-dir "$dir/archive" -records "$records" -questions "$ask" -asked "$dir/asked.csv" -ctlogd "$dir/ctlogd")
for what in make catalog reader whois verify; do "$dir/bench" "${large[@]}" $what; done
if [[ -n $python ]] && "$python" -c 'import duckdb' 2>/dev/null; then
	[[ $EUID != 0 ]] || "$python" bench/archive/engine.py "$dir/archive" "$dir/asked.csv" cold
	"$python" bench/archive/engine.py "$dir/archive" "$dir/asked.csv" warm
else
	echo "duckdb    not there: pip install duckdb, or set PYTHON"
fi

echo "== a catalog of $segments segments, one an hour"
small=(-dir "$dir/small" -records $((segments * 200)) -segment 200 -every 18s -questions 20 -inside -asked "$dir/small.csv" -ctlogd "$dir/ctlogd")
for what in make catalog whois verify; do "$dir/bench" "${small[@]}" $what; done

if command -v nfcapd >/dev/null && command -v nfdump >/dev/null; then
	n=$((records < flows ? records : flows))
	echo "== nfdump, $n of the flows by IPFIX"
	mkdir "$dir/nf"
	nfcapd -w "$dir/nf" -b 127.0.0.1 -p 39555 -t 3600 -y -B 33554432 >"$dir/nfcapd.log" 2>&1 &
	capd=$!
	for _ in {1..100}; do
		grep -qi ':9A83 ' /proc/net/udp && break
		sleep 0.1
	done
	"$dir/bench" -records "$n" -rate $((records / 20000 > 0 ? records / 20000 : 1)) -collector udp://127.0.0.1:39555 export
	before=
	until got=$(stat -c %s "$dir"/nf/nfcapd.current.* 2>/dev/null | awk '{s += $1} END {print s}') && [[ $got == "$before" ]]; do
		before=$got
		sleep 1
	done
	cpu=$(awk '{print ($14 + $15) * 10}' "/proc/$capd/stat")
	kill "$capd"
	wait "$capd" || true
	capd=
	got=$(nfdump -R "$dir/nf" -I | awk '/^Flows:/ {print $2}')
	echo "size      $(du -sb "$dir/nf" | awk -v n="$got" '{printf "%8.1f", $1 / n}') bytes a record, $((cpu * 1000000 / (got > 0 ? got : 1))) ns of CPU a record; $got of $n flows came"
	times=()
	missed=0
	while IFS=, read -r address port _ src _; do
		[[ $address != address ]] || continue
		[[ $EUID != 0 ]] || echo 3 >/proc/sys/vm/drop_caches
		began=$(date +%s%N)
		nfdump -R "$dir/nf" -q -o csv "src xip $address and src xport $port" >"$dir/answer"
		times+=($((($(date +%s%N) - began) / 10000)))
		grep -q "$src" "$dir/answer" || missed=$((missed + 1))
	done < <(head -11 "$dir/asked.csv")
	printf '%s\n' "${times[@]}" | sort -n | awk -v m="$missed" '{t[NR] = $1 / 100} END {printf "nfdump    %8.2f ms median, %8.2f ms most: point, cold, a scan (%d questions, %d without an answer)\n", t[int((NR + 1) / 2)], t[NR], NR, m}'
else
	echo "nfdump    not there: apt-get install nfdump"
fi
