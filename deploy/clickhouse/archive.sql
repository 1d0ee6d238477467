-- From an archive's Parquet files, catalogs and notes into the tables. Replace the folder in the three places: by another
-- one below user_files_path, or by s3('https://.../archive/**/*.parquet', ...) with the same structure.

-- The observer is the one that ctlogd has in its configuration, by default the machine id: flow_id is made of it, and is then
-- the same as that of the records which came by another way.
CREATE VIEW archive AS
WITH SHA256({observer:String}) AS key,
    (x, digits) -> unhex(leftPad(hex(x), digits, '0')) AS network
SELECT coalesce(`end`, time) AS time, time_source, clock, event,
    decodeURLComponent(extract(_path, '/host=([^/]+)/')) AS host,
    if(event NOT IN ('destroy', 'open') OR start IS NULL OR src_ip = '' OR dst_ip = '' OR netns != '' AND nsid IS NULL, '', lower(hex(sipHash128ReferenceKeyed(
        (reinterpretAsUInt64(substring(key, 1, 8)), reinterpretAsUInt64(substring(key, 9, 8))),
        concat(char(if(isNull(nsid), 1, 2)), char(if(isIPv6String(src_ip), 6, 4)), char(proto_num),
            char(isNotNull(zone) + 2 * isNotNull(zone_orig) + 4 * isNotNull(zone_reply)),
            network(ifNull(zone, 0), 4), network(ifNull(zone_orig, 0), 4), network(ifNull(zone_reply, 0), 4),
            IPv6StringToNumOrDefault(src_ip), IPv6StringToNumOrDefault(dst_ip),
            network(coalesce(src_port, icmp_id, gre_key, 0), 4),
            network(coalesce(dst_port, icmp_type * 256 + icmp_code, gre_dst_key, 0), 4),
            network(toUnixTimestamp64Nano(ifNull(start, toDateTime64(0, 9, 'UTC'))), 16),
            if(isNull(nsid), '', network(ifNull(nsid, 0), 8))))))) AS flow_id,
    * EXCEPT (time, time_source, clock, event)
FROM file('/var/log/ctlogd/archive/**/*.parquet', Parquet, '
    event String, time Nullable(DateTime64(9, \'UTC\')), time_source String, clock Array(String),
    start Nullable(DateTime64(9, \'UTC\')), `end` Nullable(DateTime64(9, \'UTC\')), proto String, proto_num Nullable(UInt8),
    src_ip String, src_port Nullable(UInt16), dst_ip String, dst_port Nullable(UInt16), nat String, nat_src_ip String,
    nat_src_port Nullable(UInt16), nat_dst_ip String, nat_dst_port Nullable(UInt16), icmp_type Nullable(UInt8),
    icmp_code Nullable(UInt8), icmp_id Nullable(UInt16), nat_icmp_id Nullable(UInt16), gre_key Nullable(UInt16),
    gre_dst_key Nullable(UInt16), nat_gre_key Nullable(UInt16), nat_gre_dst_key Nullable(UInt16),
    orig_packets Nullable(UInt64), orig_bytes Nullable(UInt64), reply_packets Nullable(UInt64), reply_bytes Nullable(UInt64),
    tcp_state String, sctp_state String, dccp_state String, status Array(String), helper String, helper_unknown Bool,
    master_proto String, master_src_ip String, master_src_port Nullable(UInt16), master_dst_ip String,
    master_dst_port Nullable(UInt16), netns String, nsid Nullable(UInt32), zone Nullable(UInt16), zone_orig Nullable(UInt16), zone_reply Nullable(UInt16),
    mark Nullable(UInt32), labels String, secctx String, subscriber String, subscriber_name String, subscriber_side String,
    subscriber_next String, subscriber_source String, end_reason String, mask_src_ip String, mask_dst_ip String,
    mask_src_port Nullable(UInt16), mask_dst_port Nullable(UInt16), class Nullable(UInt32), flags Array(String),
    timeout_s Nullable(UInt32), wildcard Bool,
    cause String, `from` Nullable(DateTime64(9, \'UTC\')), `to` Nullable(DateTime64(9, \'UTC\')), lost Nullable(UInt64), output String');

-- Then, with the observer of each host in turn:
--   INSERT INTO flows (* EXCEPT (community_id, nat_community_id, ct_id)) SELECT * EXCEPT (cause, `from`, `to`, lost, output) FROM archive(observer = '...') WHERE event NOT IN ('gap', 'checkpoint') AND host = '...';
--   INSERT INTO gaps SELECT time, time_source, clock, host, cause, `from`, `to`, lost, output, netns, nsid FROM archive(observer = '') WHERE event = 'gap';
--   INSERT INTO checkpoints SELECT * FROM archive_checkpoints;
--   INSERT INTO notes SELECT * FROM archive_notes;

CREATE VIEW archive_checkpoints AS
SELECT decodeURLComponent(extract(_path, '/host=([^/]+)/')) AS host,
    parseDateTime64BestEffort(tupleElement(c, 'began'), 9, 'UTC') AS began, parseDateTime64BestEffort(tupleElement(c, 'ended'), 9, 'UTC') AS ended,
    toUInt32(parseTimeDelta(tupleElement(c, 'min_age'))) AS min_age_s, tupleElement(c, 'whole') AS whole
FROM file('/var/log/ctlogd/archive/**/catalog.jsonl', JSONEachRow,
    'checkpoints Array(Tuple(began String, ended String, min_age String, whole Bool))')
ARRAY JOIN checkpoints AS c;

CREATE VIEW archive_notes AS
SELECT decodeURLComponent(extract(note, '^ctlogd archive (\\S+)')) AS host,
    parseDateTime64BestEffort(extract(note, '\ntime (\\S+)'), 9, 'UTC') AS time,
    toUInt64(extract(note, '^[^\n]*\n(\\d+)\n')) AS lines,
    lower(hex(base64Decode(extract(note, '^[^\n]*\n[^\n]*\n([^\n]*)\n')))) AS hash,
    note
FROM file('/var/log/ctlogd/archive/*/checkpoint.note', RawBLOB, 'note String');
