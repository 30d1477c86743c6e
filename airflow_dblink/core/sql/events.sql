-- name: installed
-- The version of the event schema, in its comment.
SELECT n.oid IS NOT NULL AS has_schema, obj_description(n.oid, 'pg_namespace') AS comment,
       has_database_privilege(d.oid, 'CREATE') AS may_create, pg_is_in_recovery() AS is_standby
  FROM pg_database AS d LEFT JOIN pg_namespace AS n ON n.nspname = {schema_name}
 WHERE d.datname = current_database();

-- name: lock
-- A try that was given up may claim at the same moment as its successor: both must get the same events.
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended({claim}, 7081424351162117429)) IS NULL AS is_locked;

-- name: claimed
SELECT {wanted} FROM {table} AS e
 WHERE e.{claimed_by}::pg_catalog.text OPERATOR(pg_catalog.=) {claim}{of_topic} ORDER BY e.{id};

-- name: kept
-- How many events the table says to be claimed: its column may cut the key, a trigger may change it.
SELECT pg_catalog.count(*) AS kept FROM {table} AS e
 WHERE e.{claimed_by}::pg_catalog.text OPERATOR(pg_catalog.=) {claim}{of_topic};

-- name: claim
WITH chosen AS MATERIALIZED (
    SELECT e.{id} FROM {table} AS e WHERE {is_unclaimed} ORDER BY e.{id} LIMIT {most} FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE {table} AS e SET {assignments}
      FROM chosen AS c WHERE e.{id} OPERATOR(pg_catalog.=) c.{id} AND {is_unclaimed}
    RETURNING {returned}
)
SELECT {wanted} FROM claimed AS e ORDER BY e.{id};

-- name: finish
UPDATE {table} AS e SET {assignments}
 WHERE e.{claimed_by}::pg_catalog.text OPERATOR(pg_catalog.=) {claim}{and_not_done};

-- name: notify
SELECT pg_catalog.pg_notify({channel}, '') IS NULL AS is_told;

-- name: unclaimed
-- A hash of the first unclaimed events, "-" if none is there; NULL if it is the last one.
SELECT CASE WHEN f.hash OPERATOR(pg_catalog.<>) {last} THEN f.hash END AS hash
  FROM (SELECT coalesce(pg_catalog.hashtextextended(pg_catalog.string_agg(u.mark, ','), 0)::pg_catalog.text, '-') AS hash
          FROM (SELECT {mark} AS mark FROM {table} AS e WHERE {is_unclaimed}
                 ORDER BY e.{id} LIMIT 1000) AS u) AS f;

-- name: trusted
-- Fails if a part of the event schema isn't trusted: the error's text is the finding. It needs pg_catalog as search_path.
SELECT CASE WHEN t.finding IS NOT NULL THEN t.finding::text::bool ELSE false END
  FROM (SELECT ({distrusted}) AS finding) AS t;

-- name: claims
-- The claims that have not been finished, the oldest first.
SELECT e.claimed_by, e.topic, count(*) AS events, min(e.id) AS first_id, min(e.claimed_at) AS claimed_at
  FROM {table} AS e WHERE e.claimed_by IS NOT NULL AND e.done_at IS NULL
 GROUP BY e.claimed_by, e.topic ORDER BY 5, 1 LIMIT {most};

-- name: topics
SELECT e.topic, count(*) FILTER (WHERE e.claimed_by IS NULL) AS unclaimed,
       count(*) FILTER (WHERE e.claimed_by IS NOT NULL AND e.done_at IS NULL) AS claimed,
       count(*) FILTER (WHERE e.done_at IS NOT NULL) AS done,
       min(e.emitted_at) FILTER (WHERE e.claimed_by IS NULL) AS oldest_unclaimed
  FROM {table} AS e GROUP BY e.topic ORDER BY e.topic;

-- name: prune
-- In batches, so that no transaction gets long.
DELETE FROM {table} AS e
 WHERE e.id = ANY (ARRAY(SELECT o.id FROM {table} AS o
                          WHERE o.done_at < now() - {older_than} ORDER BY o.done_at LIMIT 10000
                            FOR UPDATE SKIP LOCKED));
