-- name: tables
-- The tables of loads, found by their names, a row per load. Plan and swap make and remove both tables in one
-- transaction, so a single one is of no use. A table that is locked, since its swap runs, is not waited for: it has no
-- size then.
SELECT n.nspname AS schema_name,
       pg_catalog.substr(c.relname, 13, 16) AS key,
       pg_catalog.min(pg_catalog.pg_get_userbyid(c.relowner)) AS owner,
       bool_and(c.relowner = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)) AS is_ours,
       pg_catalog.array_agg(c.relname::text ORDER BY c.relname) AS names,
       pg_catalog.sum(CASE WHEN NOT EXISTS (SELECT
                                              FROM pg_catalog.pg_locks AS l
                                             WHERE l.relation = c.oid AND l.mode = 'AccessExclusiveLock')
                           THEN pg_catalog.pg_total_relation_size(c.oid) END)::int8 AS bytes,
       (SELECT pg_catalog.count(DISTINCT l.pid)
          FROM pg_catalog.pg_locks AS l
          JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid AND a.usesysid IS NOT NULL
         WHERE l.locktype = 'relation' AND l.relation = ANY (pg_catalog.array_agg(c.oid))
           AND l.pid <> pg_catalog.pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_catalog.pg_database
                              WHERE datname = pg_catalog.current_database())) AS sessions
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relname ~ '^dblink_load_[0-9a-f]{16}(_parts)?$'
 GROUP BY n.nspname, pg_catalog.substr(c.relname, 13, 16)
 ORDER BY n.nspname, key;

-- name: table_name
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS name
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid = %(oid)s::oid;

-- name: keepers
-- Sessions that keep a snapshot of this database, and whether a part uses it. Only those of the same role are
-- believed: names and locks can be taken by anybody.
SELECT a.pid, a.application_name AS name,
       EXISTS (SELECT
                 FROM pg_catalog.pg_locks AS used
                WHERE used.locktype = 'advisory' AND used.objsubid = 2 AND used.database = l.database
                  AND used.classid = l.classid AND used.objid = l.objid) AS is_used
  FROM pg_catalog.pg_locks AS l
  JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock' AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
   AND a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
   AND a.application_name ~ '^dblink_keeper '
 ORDER BY a.pid;
