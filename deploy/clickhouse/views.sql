-- The questions. Times are RFC 3339 or anything like it, UTC unless they say otherwise.

-- Who had an address and a port at a time, or within some seconds from it.
--
--   SELECT * FROM whois(ip = '203.0.113.5', port = 40123, at = '2026-03-09 12:03:07', within = 1)
--
-- port = -1 is any. For ICMP and GRE it is the id or the key. Each row is a flow:
--   nat        its source was translated to the address: who had it is the inside
--   own        the address was its source, and was not translated
--   forwarded  it came to the address and was sent on: who got it is the inside
-- Several inside addresses: Linux gives one port to several at a time when they talk to different peers; the peer decides.
CREATE VIEW whois AS
SELECT role, host, event, start, `end`, time, clock, proto, inside_ip, inside_port, outside_ip, outside_port, peer_ip, peer_port,
    subscriber, subscriber_name, subscriber_side, netns, zone, zone_orig, zone_reply, mark, orig_packets, orig_bytes, reply_packets,
    reply_bytes, end_reason, flow_id
FROM
(
    SELECT 'nat' AS role, src_ip AS inside_ip, coalesce(src_port, icmp_id, gre_key) AS inside_port,
        nat_src_ip AS outside_ip, coalesce(nat_src_port, nat_icmp_id, icmp_id, nat_gre_key, gre_key) AS outside_port,
        dst_ip AS peer_ip, dst_port AS peer_port, twin, host, event, start, `end`, time, clock, proto,
        subscriber, subscriber_name, subscriber_side, netns, zone, zone_orig,
        zone_reply, mark, orig_packets, orig_bytes, reply_packets, reply_bytes, end_reason, flow_id
    FROM flows
    WHERE nat_src_ip = if(isIPv6String({ip:String}), toString(toIPv6OrDefault({ip:String})), {ip:String})
        AND ({port:Int32} < 0 OR nat_src_port = {port:Int32}
            OR nat_src_port IS NULL AND coalesce(nat_icmp_id, icmp_id, nat_gre_key, gre_key) = {port:Int32})
        AND (`end` IS NULL OR `end` >= parseDateTime64BestEffort({at:String}, 9, 'UTC'))
    UNION ALL
    SELECT 'own' AS role, src_ip AS inside_ip, coalesce(src_port, icmp_id, gre_key) AS inside_port,
        inside_ip AS outside_ip, inside_port AS outside_port,
        dst_ip AS peer_ip, dst_port AS peer_port, twin, host, event, start, `end`, time, clock, proto,
        subscriber, subscriber_name, subscriber_side, netns, zone, zone_orig,
        zone_reply, mark, orig_packets, orig_bytes, reply_packets, reply_bytes, end_reason, flow_id
    FROM flows
    WHERE src_ip = if(isIPv6String({ip:String}), toString(toIPv6OrDefault({ip:String})), {ip:String}) AND nat_src_ip = ''
        AND ({port:Int32} < 0 OR coalesce(src_port, icmp_id, gre_key) = {port:Int32})
    UNION ALL
    SELECT 'forwarded' AS role, nat_dst_ip AS inside_ip, nat_dst_port AS inside_port, dst_ip AS outside_ip,
        dst_port AS outside_port, src_ip AS peer_ip, src_port AS peer_port, twin, host, event, start, `end`, time, clock, proto,
        subscriber, subscriber_name, subscriber_side, netns, zone, zone_orig,
        zone_reply, mark, orig_packets, orig_bytes, reply_packets, reply_bytes, end_reason, flow_id
    FROM flows
    WHERE forwarded_ip = if(isIPv6String({ip:String}), toString(toIPv6OrDefault({ip:String})), {ip:String})
        AND ({port:Int32} < 0 OR dst_port = {port:Int32})
)
WHERE event IN ('destroy', 'open')
    AND time >= parseDateTime64BestEffort({at:String}, 9, 'UTC')
    AND (start IS NULL OR start <= parseDateTime64BestEffort({at:String}, 9, 'UTC') + toIntervalSecond({within:UInt32}))
-- One row a flow: its end, or else the last time that it was seen alive. This is FINAL for the few rows of an answer.
ORDER BY role, event, time DESC
LIMIT 1 BY role, flow_id, twin;

-- What an inside address did between two times.
--
--   SELECT * FROM inside(ip = '100.64.3.7', since = '2026-03-09 12:00:00', until = '2026-03-09 13:00:00')
CREATE VIEW inside AS
SELECT *
FROM flows
WHERE src_ip = if(isIPv6String({ip:String}), toString(toIPv6OrDefault({ip:String})), {ip:String})
    AND event IN ('destroy', 'open')
    AND time >= parseDateTime64BestEffort({since:String}, 9, 'UTC')
    AND (start IS NULL OR start <= parseDateTime64BestEffort({until:String}, 9, 'UTC'))
ORDER BY event, time DESC
LIMIT 1 BY flow_id, twin;

-- What a subscriber did between two times, under whichever addresses.
--
--   SELECT * FROM of_subscriber(id = 'alice', since = '2026-03-09 12:00:00', until = '2026-03-09 13:00:00')
CREATE VIEW of_subscriber AS
SELECT *
FROM flows
WHERE subscriber = {id:String}
    AND event IN ('destroy', 'open')
    AND time >= parseDateTime64BestEffort({since:String}, 9, 'UTC')
    AND (start IS NULL OR start <= parseDateTime64BestEffort({until:String}, 9, 'UTC'))
ORDER BY event, time DESC
LIMIT 1 BY flow_id, twin;

-- Whether anything is missing of what was alive at a time, or within some seconds from it, for each host.
--
--   SELECT * FROM completeness(at = '2026-03-09 12:03:07', within = 1)
--
--   complete    no gap that may hide a flow of that time
--   gaps        some may: SELECT * FROM gaps FINAL WHERE to IS NULL OR to >= ... has them
--   not_yet     nothing has come from the host since
--   not_kept    no record of the host is as old, or none is any more
-- A flow has its record when it ends. witness is the first checkpoint by which those that were alive have one, too; without
-- one, a flow that has not ended since is not there.
CREATE VIEW completeness AS
SELECT h.host AS host,
    multiIf(c.records = 0 OR c.first > parseDateTime64BestEffort({at:String}, 9, 'UTC'), 'not_kept', g.gaps > 0, 'gaps',
        c.last < parseDateTime64BestEffort({at:String}, 9, 'UTC') + toIntervalSecond({within:UInt32}), 'not_yet', 'complete') AS verdict,
    g.gaps AS gaps, g.total AS lost, g.unknown AS gaps_of_unknown_size, g.causes AS causes,
    if(c.records = 0, NULL, c.first) AS first_record, if(c.records = 0, NULL, c.last) AS last_record,
    c.doubtful AS doubtful_clock, if(w.host = '', NULL, w.witness) AS witness
FROM (SELECT host FROM coverage UNION DISTINCT SELECT host FROM gaps) AS h
LEFT JOIN
(
    SELECT host, min(first) AS first, max(last) AS last, sum(records) AS records, sum(doubtful) AS doubtful FROM coverage GROUP BY host
) AS c ON c.host = h.host
LEFT JOIN
(
    SELECT host, count() AS gaps, sum(lost) AS total, countIf(lost IS NULL) AS unknown, arraySort(groupUniqArray(cause)) AS causes
    FROM gaps FINAL
    WHERE `to` IS NULL OR `to` >= parseDateTime64BestEffort({at:String}, 9, 'UTC')
    GROUP BY host
) AS g ON g.host = h.host
LEFT JOIN
(
    SELECT host, min(ended) AS witness
    FROM checkpoints FINAL
    WHERE whole AND began >= parseDateTime64BestEffort({at:String}, 9, 'UTC') + toIntervalSecond({within:UInt32}) + toIntervalSecond(min_age_s)
    GROUP BY host
) AS w ON w.host = h.host
ORDER BY host;
