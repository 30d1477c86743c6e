-- name: table_facts
-- Facts about a sync's destination table that a transfer doesn't need. "owns": whether the role may disable the
-- triggers of the table, its partitions and inheritance children.
WITH RECURSIVE part (relid) AS (
    SELECT %(oid)s::oid
     UNION
    SELECT i.inhrelid FROM part JOIN pg_catalog.pg_inherits AS i ON i.inhparent = part.relid
)
SELECT pg_catalog.pg_is_in_recovery() AS is_standby,
       pg_catalog.has_table_privilege(%(oid)s::oid, 'DELETE') AS may_delete,
       (SELECT pg_catalog.bool_and(pg_catalog.pg_has_role(c.relowner, 'USAGE'))
          FROM part JOIN pg_catalog.pg_class AS c ON c.oid = part.relid) AS owns,
       EXISTS (SELECT FROM pg_catalog.pg_rewrite AS rule WHERE rule.ev_class = %(oid)s::oid) AS has_rules;

-- name: triggers
-- Users' enabled triggers on the table, its partitions and inheritance children, each of which has a state of its
-- own. (pg_partition_tree() would be empty for a plain table.)
WITH RECURSIVE part (relid, level) AS (
    SELECT %(oid)s::oid, 0
     UNION
    SELECT i.inhrelid, part.level + 1 FROM part JOIN pg_catalog.pg_inherits AS i ON i.inhparent = part.relid
)
SELECT n.nspname AS schema_name, c.relname AS table_name, t.tgname AS name, t.tgenabled::text AS enabled
  FROM part
  JOIN pg_catalog.pg_class AS c ON c.oid = part.relid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal
 WHERE t.tgenabled <> 'D'
 ORDER BY part.level, c.relname, t.tgname;

-- name: own_references
-- Foreign keys from the table to itself that can't be deferred.
SELECT conname AS name
  FROM pg_catalog.pg_constraint
 WHERE contype = 'f' AND conrelid = %(oid)s AND confrelid = %(oid)s AND NOT condeferrable;

-- name: cascading_references
-- Foreign keys that change other rows when a row of the table, its partitions or inheritance children is deleted or
-- gets another key: c cascade, n set null, d set default. "comes_back": whether the chain of these changes may lead
-- back to rows of the table itself.
WITH RECURSIVE part (relid) AS (
    SELECT %(oid)s::oid
     UNION
    SELECT i.inhrelid FROM part JOIN pg_catalog.pg_inherits AS i ON i.inhparent = part.relid
), cascade AS (
    SELECT c.*, c.confdeltype IN ('c', 'n', 'd') AS on_delete
      FROM pg_catalog.pg_constraint AS c
     WHERE c.contype = 'f' AND (c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd'))
), reached (relid) AS (
    SELECT c.conrelid FROM cascade AS c JOIN part ON part.relid = c.confrelid
     UNION
    SELECT next.relid
      FROM reached
     CROSS JOIN LATERAL (
               SELECT c.conrelid FROM cascade AS c WHERE c.confrelid = reached.relid
                UNION ALL
               SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = reached.relid
           ) AS next (relid)
)
SELECT c.conname AS name, c.conrelid::regclass::text AS table_name, c.on_delete,
       EXISTS (SELECT FROM reached JOIN part USING (relid)) AS comes_back
  FROM cascade AS c
  JOIN part ON part.relid = c.confrelid
 WHERE NOT EXISTS (  -- the same constraint of a partition
           SELECT FROM cascade AS whole JOIN part AS other ON other.relid = whole.confrelid
            WHERE whole.oid = c.conparentid)
 ORDER BY c.conname;

-- name: indexed
-- First columns of B-tree indexes: PostgreSQL finds a range of their values without reading the whole table.
SELECT DISTINCT att.attname AS name
  FROM pg_catalog.pg_index AS idx
  JOIN pg_catalog.pg_class AS c ON c.oid = idx.indexrelid
  JOIN pg_catalog.pg_am AS am ON am.oid = c.relam AND am.amname = 'btree'
  JOIN pg_catalog.pg_attribute AS att ON att.attrelid = idx.indrelid AND att.attnum = idx.indkey[0]
 WHERE idx.indrelid = %(oid)s AND idx.indisvalid AND idx.indpred IS NULL;

-- name: enough_memory
-- A value for work_mem, under the user's search_path: at least 64 MB.
CASE WHEN pg_catalog.pg_size_bytes(pg_catalog.current_setting('work_mem')) OPERATOR(pg_catalog.<) 67108864
     THEN '64MB' ELSE pg_catalog.current_setting('work_mem') END;

-- name: snapshot
SELECT pg_catalog.pg_current_snapshot()::text AS snapshot;

-- name: histogram
-- Histogram bounds of an integer column, with equally many rows between any two, if the table was analyzed. A
-- partitioned table may have two sets of statistics; this takes the one of all partitions.
SELECT s.histogram_bounds::text::int8[] AS bounds
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_stats AS s ON s.schemaname = n.nspname AND s.tablename = c.relname
 WHERE c.oid = %(oid)s AND s.attname = %(name)s
 ORDER BY s.inherited DESC
 LIMIT 1;
