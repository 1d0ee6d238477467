#!/bin/bash
# kafka.sh DIR PORT JARS runs a Kafka of one node on loopback until it is killed; DIR is its own. See
# integration/broker/fetch.sh for JARS.
set -euo pipefail
dir=$1 port=$2 jars=$3
mkdir -p "$dir"
cat >"$dir/server.properties" <<END
node.id=1
process.roles=broker,controller
controller.quorum.voters=1@127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
END
kafka() { # RUNNER CLASS ARGUMENT...
    "$1" java -Xmx512m -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*" "${@:2}"
}
kafka command kafka.tools.StorageTool format -t Y3Rsb2dkLWJlbmNoLTEyMw -c "$dir/server.properties"
kafka exec kafka.Kafka "$dir/server.properties"
