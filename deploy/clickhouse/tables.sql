-- Tables for ctlogd's records: flows, gaps, checkpoints, and what is covered at all. docs/clickhouse.md says why they are so.
--
-- Columns are called as the keys in docs/json.md, and mean the same. A text that is not known is '', any other value NULL;
-- a list that is not known is []. v has no column.

CREATE TABLE flows
(
    time DateTime64(9, 'UTC') CODEC(T64, ZSTD(1)),
    time_source LowCardinality(String),
    clock Array(LowCardinality(String)),
    event LowCardinality(String),
    host LowCardinality(String),
    flow_id String CODEC(ZSTD(1)),
    start Nullable(DateTime64(9, 'UTC')) CODEC(T64, ZSTD(1)),
    `end` Nullable(DateTime64(9, 'UTC')) CODEC(T64, ZSTD(1)),
    duration_ms Nullable(Int64) ALIAS intDiv(toUnixTimestamp64Nano(`end`) - toUnixTimestamp64Nano(start), 1000000),
    proto LowCardinality(String),
    proto_num Nullable(UInt8),
    src_ip String CODEC(ZSTD(1)),
    src_port Nullable(UInt16),
    dst_ip String CODEC(ZSTD(1)),
    dst_port Nullable(UInt16) CODEC(ZSTD(1)),
    nat LowCardinality(String),
    nat_src_ip String CODEC(ZSTD(1)),
    nat_src_port Nullable(UInt16) CODEC(Delta, ZSTD(1)),
    nat_dst_ip String CODEC(ZSTD(1)),
    nat_dst_port Nullable(UInt16),
    icmp_type Nullable(UInt8),
    icmp_code Nullable(UInt8),
    icmp_id Nullable(UInt16),
    nat_icmp_id Nullable(UInt16),
    gre_key Nullable(UInt16),
    gre_dst_key Nullable(UInt16),
    nat_gre_key Nullable(UInt16),
    nat_gre_dst_key Nullable(UInt16),
    community_id String CODEC(ZSTD(1)),
    nat_community_id String CODEC(ZSTD(1)),
    orig_packets Nullable(UInt64) CODEC(ZSTD(1)),
    orig_bytes Nullable(UInt64) CODEC(ZSTD(1)),
    reply_packets Nullable(UInt64) CODEC(ZSTD(1)),
    reply_bytes Nullable(UInt64) CODEC(ZSTD(1)),
    tcp_state LowCardinality(String),
    sctp_state LowCardinality(String),
    dccp_state LowCardinality(String),
    status Array(LowCardinality(String)) CODEC(ZSTD(1)),
    helper LowCardinality(String),
    helper_unknown Bool,
    master_proto LowCardinality(String),
    master_src_ip String CODEC(ZSTD(1)),
    master_src_port Nullable(UInt16),
    master_dst_ip String CODEC(ZSTD(1)),
    master_dst_port Nullable(UInt16),
    netns LowCardinality(String),
    nsid Nullable(UInt32),
    zone Nullable(UInt16),
    zone_orig Nullable(UInt16),
    zone_reply Nullable(UInt16),
    mark Nullable(UInt32),
    labels LowCardinality(String),
    secctx LowCardinality(String),
    subscriber String CODEC(ZSTD(1)),
    subscriber_name String CODEC(ZSTD(1)),
    subscriber_side LowCardinality(String),
    subscriber_next String CODEC(ZSTD(1)),
    subscriber_source String CODEC(ZSTD(1)),
    ct_id Nullable(UInt32),
    end_reason LowCardinality(String),
    mask_src_ip LowCardinality(String),
    mask_dst_ip LowCardinality(String),
    mask_src_port Nullable(UInt16),
    mask_dst_port Nullable(UInt16),
    class Nullable(UInt32),
    flags Array(LowCardinality(String)),
    timeout_s Nullable(UInt32),
    wildcard Bool,

    -- A record without flow_id is the twin only of one that is the same in every value.
    twin UInt64 MATERIALIZED if(flow_id != '', 0, cityHash64((
        time, time_source, clock, event, host, start, `end`, proto_num, src_ip, src_port, dst_ip, dst_port, nat, nat_src_ip,
        nat_src_port, nat_dst_ip, nat_dst_port, icmp_type, icmp_code, icmp_id, nat_icmp_id, gre_key, gre_dst_key, nat_gre_key,
        nat_gre_dst_key, orig_packets, orig_bytes, reply_packets, reply_bytes, tcp_state, sctp_state, dccp_state, status,
        helper, helper_unknown, master_proto, master_src_ip, master_src_port, master_dst_ip, master_dst_port, netns, nsid, zone, zone_orig,
        zone_reply, mark, labels, secctx, subscriber, subscriber_name, subscriber_side,
        subscriber_next, subscriber_source, ct_id, end_reason, mask_src_ip, mask_dst_ip, mask_src_port, mask_dst_port, class,
        flags, timeout_s, wildcard))),
    -- Where the destination was translated: few flows are, so most granules have none of an address.
    forwarded_ip String MATERIALIZED if(nat IN ('dnat', 'both'), dst_ip, ''),

    -- The rows' places, sorted by inside address: for what one subscriber did, and for addresses that are not translated.
    PROJECTION inside (SELECT _part_offset ORDER BY src_ip),
    -- The same by subscriber, where records name one; it takes next to nothing where none does.
    PROJECTION subscribers (SELECT _part_offset ORDER BY subscriber),
    INDEX forwarded forwarded_ip TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(time)
PARTITION BY toDate(time)
PRIMARY KEY (nat_src_ip, nat_src_port, `end`)
ORDER BY (nat_src_ip, nat_src_port, `end`, flow_id, event, twin)
TTL toDateTime(time) + INTERVAL 180 DAY
SETTINGS allow_nullable_key = 1, ttl_only_drop_parts = 1, deduplicate_merge_projection_mode = 'rebuild';

-- A gap without to has no end: what it hides may belong to any time.
CREATE TABLE gaps
(
    time DateTime64(9, 'UTC'),
    time_source LowCardinality(String),
    clock Array(LowCardinality(String)),
    host LowCardinality(String),
    cause LowCardinality(String),
    `from` Nullable(DateTime64(9, 'UTC')),
    `to` Nullable(DateTime64(9, 'UTC')),
    lost Nullable(UInt64),
    output String,
    netns LowCardinality(String),
    nsid Nullable(UInt32)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (host, time, cause, output, netns, `from`, `to`, lost)
TTL toDateTime(time) + INTERVAL 400 DAY
SETTINGS allow_nullable_key = 1;

-- What an archive's catalogs say of its checkpoints: flows older than min_age were put on record between began and ended.
CREATE TABLE checkpoints
(
    host LowCardinality(String),
    began DateTime64(9, 'UTC'),
    ended DateTime64(9, 'UTC'),
    min_age_s UInt32,
    whole Bool
)
ENGINE = ReplacingMergeTree
ORDER BY (host, began, ended)
TTL toDateTime(began) + INTERVAL 400 DAY;

-- The signed notes of an archive, out of reach of the machine that wrote it.
CREATE TABLE notes
(
    host LowCardinality(String),
    time DateTime64(9, 'UTC'),
    lines UInt64,
    hash String,
    note String
)
ENGINE = ReplacingMergeTree
ORDER BY (host, time, hash);

-- From when to when there are records of a host. A record that came twice counts twice.
CREATE TABLE coverage
(
    host LowCardinality(String),
    day Date,
    first SimpleAggregateFunction(min, DateTime64(9, 'UTC')),
    last SimpleAggregateFunction(max, DateTime64(9, 'UTC')),
    records SimpleAggregateFunction(sum, UInt64),
    doubtful SimpleAggregateFunction(sum, UInt64) -- the clock was not synchronised, or was set
)
ENGINE = AggregatingMergeTree
ORDER BY (host, day)
TTL day + INTERVAL 181 DAY;

CREATE MATERIALIZED VIEW coverage_of_flows TO coverage AS
SELECT host, toDate(time) AS day, min(time) AS first, max(time) AS last, count() AS records, countIf(notEmpty(clock)) AS doubtful
FROM flows GROUP BY host, day;
