#!/bin/sh
# Prints the directory that holds Apache Kafka's jars, after fetching them from Maven's central repository unless they
# are in the user's cache already. As root on Debian it installs java, maven and kcat where they are missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ctlogd
jars=$cache/kafka-$(sha256sum <"$here/pom.xml" | cut -c1-12)

need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null && return
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "missing $1; install the package $2" >&2
		exit 1
	fi
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$2" >&2
}
need java default-jre-headless
need kcat kcat

if [ ! -d "$jars" ]; then
	need mvn maven
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/fetch.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$tmp" >&2
	mv -T "$tmp" "$jars" 2>/dev/null || [ -d "$jars" ] # somebody else may have been quicker
	trap - EXIT
fi
echo "$jars"
