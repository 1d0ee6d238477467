-- Sums for charts, which would read whole days of flows otherwise: by minute, and by hour and inside address. They are made
-- as flows are inserted, so what was delivered twice is counted twice; flows itself has each once. deploy/grafana shows them.

CREATE TABLE rates
(
    minute DateTime('UTC') CODEC(Delta, ZSTD(1)),
    host LowCardinality(String),
    proto LowCardinality(String),
    nat LowCardinality(String),
    flows UInt64,
    orig_packets UInt64,
    reply_packets UInt64,
    orig_bytes UInt64,
    reply_bytes UInt64
)
ENGINE = SummingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (host, minute, proto, nat)
TTL minute + INTERVAL 400 DAY;

CREATE MATERIALIZED VIEW rates_of_flows TO rates AS
SELECT toStartOfMinute(toDateTime(time, 'UTC')) AS minute, host, proto, nat, count() AS flows,
    sum(coalesce(f.orig_packets, 0)) AS orig_packets, sum(coalesce(f.reply_packets, 0)) AS reply_packets,
    sum(coalesce(f.orig_bytes, 0)) AS orig_bytes, sum(coalesce(f.reply_bytes, 0)) AS reply_bytes
FROM flows AS f
WHERE event = 'destroy'
GROUP BY minute, host, proto, nat;

CREATE TABLE usage
(
    hour DateTime('UTC') CODEC(Delta, ZSTD(1)),
    host LowCardinality(String),
    src_ip String CODEC(ZSTD(1)),
    flows UInt64,
    orig_bytes UInt64,
    reply_bytes UInt64
)
ENGINE = SummingMergeTree
PARTITION BY toDate(hour)
ORDER BY (hour, host, src_ip)
TTL hour + INTERVAL 180 DAY;

CREATE MATERIALIZED VIEW usage_of_flows TO usage AS
SELECT toStartOfHour(toDateTime(time, 'UTC')) AS hour, host, src_ip, count() AS flows,
    sum(coalesce(f.orig_bytes, 0)) AS orig_bytes, sum(coalesce(f.reply_bytes, 0)) AS reply_bytes
FROM flows AS f
WHERE event = 'destroy'
GROUP BY hour, host, src_ip;
