-- From a topic of Kafka into the tables. What must fit your place: brokers, topic, and at most as many consumers as the
-- topic has partitions. One replica of a cluster, or all of them: a group shares the partitions out.

CREATE TABLE flows_queue
(
    v UInt8,
    time DateTime64(9, 'UTC'), time_source String, clock Array(String), event String, host String, flow_id String,
    start Nullable(DateTime64(9, 'UTC')), `end` Nullable(DateTime64(9, 'UTC')),
    proto String, proto_num Nullable(UInt8), src_ip String, src_port Nullable(UInt16), dst_ip String, dst_port Nullable(UInt16),
    nat String, nat_src_ip String, nat_src_port Nullable(UInt16), nat_dst_ip String, nat_dst_port Nullable(UInt16),
    icmp_type Nullable(UInt8), icmp_code Nullable(UInt8), icmp_id Nullable(UInt16), nat_icmp_id Nullable(UInt16),
    gre_key Nullable(UInt16), gre_dst_key Nullable(UInt16), nat_gre_key Nullable(UInt16), nat_gre_dst_key Nullable(UInt16),
    community_id String, nat_community_id String,
    orig_packets Nullable(UInt64), orig_bytes Nullable(UInt64), reply_packets Nullable(UInt64), reply_bytes Nullable(UInt64),
    tcp_state String, sctp_state String, dccp_state String, status Array(String), helper String, helper_unknown Bool,
    master_proto String, master_src_ip String, master_src_port Nullable(UInt16), master_dst_ip String,
    master_dst_port Nullable(UInt16), netns String, nsid Nullable(UInt32), zone Nullable(UInt16), zone_orig Nullable(UInt16), zone_reply Nullable(UInt16),
    mark Nullable(UInt32), labels String, secctx String, subscriber String, subscriber_name String, subscriber_side String,
    subscriber_next String, subscriber_source String, ct_id Nullable(UInt32), end_reason String,
    mask_src_ip String, mask_dst_ip String, mask_src_port Nullable(UInt16), mask_dst_port Nullable(UInt16),
    class Nullable(UInt32), flags Array(String), timeout_s Nullable(UInt32), wildcard Bool,
    cause String, `from` Nullable(DateTime64(9, 'UTC')), `to` Nullable(DateTime64(9, 'UTC')), lost Nullable(UInt64), output String,
    origin String, lines Nullable(UInt64), hash String, note String
)
ENGINE = Kafka
SETTINGS kafka_broker_list = 'kafka1:9092,kafka2:9092', kafka_topic_list = 'flows', kafka_group_name = 'clickhouse',
    kafka_format = 'JSONEachRow', kafka_num_consumers = 4, kafka_thread_per_consumer = 1, kafka_handle_error_mode = 'stream',
    date_time_input_format = 'best_effort', input_format_skip_unknown_fields = 1;

CREATE MATERIALIZED VIEW flows_of_queue TO flows AS
SELECT * EXCEPT (v, cause, `from`, `to`, lost, output, origin, lines, hash, note) FROM flows_queue
WHERE _error = '' AND v = 1 AND event NOT IN ('gap', 'checkpoint');

CREATE MATERIALIZED VIEW gaps_of_queue TO gaps AS
SELECT time, time_source, clock, host, cause, `from`, `to`, lost, output, netns, nsid FROM flows_queue
WHERE _error = '' AND v = 1 AND event = 'gap';

CREATE MATERIALIZED VIEW notes_of_queue TO notes AS
SELECT host, time, ifNull(lines, 0) AS lines, hash, note FROM flows_queue
WHERE _error = '' AND v = 1 AND event = 'checkpoint';

-- What cannot be read does not stop the others, and is not lost either: its text is here. Of a record of another version its
-- place is: the engine gives the text only of what it could not parse. "kcat -C -t TOPIC -p PARTITION -o OFFSET -c 1" reads it.
CREATE TABLE rejects
(
    received DateTime DEFAULT now(),
    topic LowCardinality(String), partition UInt64, offset UInt64,
    error String,
    message String CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY received
TTL received + INTERVAL 30 DAY;

CREATE MATERIALIZED VIEW rejects_of_queue TO rejects AS
SELECT _topic AS topic, _partition AS partition, _offset AS offset,
    if(_error != '', _error, concat('version ', toString(v), ' of the format, these tables know 1')) AS error,
    _raw_message AS message
FROM flows_queue WHERE _error != '' OR v != 1;
