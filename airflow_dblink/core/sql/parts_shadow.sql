-- name: definition
-- What of a table's definition was copied when the load was planned, to be compared with what it is now. A
-- default is compared as text, which names a sequence as the session's path has it.
SELECT a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod)
       || coalesce(' collate ' || a.attcollation::text, '')
       || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
       || ' ' || a.attgenerated::text || a.attidentity::text
       || coalesce(' default ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') AS line
  FROM pg_catalog.pg_attribute AS a
  LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = %(oid)s::oid AND a.attnum > 0 AND NOT a.attisdropped
 UNION ALL
SELECT c.conname || ' ' || pg_catalog.pg_get_constraintdef(c.oid)
  FROM pg_catalog.pg_constraint AS c
 WHERE c.conrelid = %(oid)s::oid AND c.contype = 'c'
 ORDER BY 1;

-- name: index_names
SELECT c.relname AS name, i.indisvalid AS is_valid
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
 WHERE i.indrelid = %(oid)s::oid;

-- name: transactions
-- Transactions of other sessions in this database that have a snapshot, or may have one: only members of
-- pg_read_all_stats see that of other roles' sessions, whose state they see, too. Sessions of nobody are not a user's.
SELECT l.virtualtransaction AS transaction, a.pid, a.application_name AS name
  FROM pg_catalog.pg_locks AS l
  JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock'
   AND l.pid <> pg_catalog.pg_backend_pid() AND a.usesysid IS NOT NULL
   AND a.datname = pg_catalog.current_database()
   AND (a.backend_xmin IS NOT NULL OR a.state IS NULL);
