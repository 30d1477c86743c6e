-- name: table_facts
-- What a sync must know of its destination, beyond what a transfer asks. LOCK TABLE in SHARE ROW
-- EXCLUSIVE MODE needs one of three privileges on the whole table. Triggers are the users' own, on the table
-- or a partition; who owns them all may disable them.
SELECT pg_catalog.has_table_privilege(%(oid)s::oid, 'DELETE') AS may_delete,
       pg_catalog.has_table_privilege(%(oid)s::oid, 'UPDATE')
           OR pg_catalog.has_table_privilege(%(oid)s::oid, 'DELETE')
           OR pg_catalog.has_table_privilege(%(oid)s::oid, 'TRUNCATE') AS may_lock,
       (SELECT pg_catalog.bool_and(pg_catalog.pg_has_role(c.relowner, 'USAGE'))
          FROM pg_catalog.pg_partition_tree(%(oid)s::oid) AS part
          JOIN pg_catalog.pg_class AS c ON c.oid = part.relid) AS owns,
       EXISTS (SELECT FROM pg_catalog.pg_rewrite AS rule WHERE rule.ev_class = %(oid)s::oid) AS has_rules;

-- name: triggers
-- User triggers that fire, on the table and its partitions; a clone of the parent's trigger is switched
-- with it.
SELECT n.nspname AS schema_name, c.relname AS table_name, t.tgname AS name, t.tgenabled::text AS enabled
  FROM pg_catalog.pg_partition_tree(%(oid)s::oid) AS part
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
-- Foreign keys of other tables whose rows would follow a deleted row: c cascade, n set null, d set default.
SELECT conname AS name, conrelid::regclass::text AS table_name
  FROM pg_catalog.pg_constraint
 WHERE contype = 'f' AND confrelid = %(oid)s AND confdeltype IN ('c', 'n', 'd');

-- name: unique_constraints
-- Column sets of all whole unique indexes, the key's among them.
SELECT c.relname AS name, array_agg(att.attname ORDER BY key.position)::text[] AS columns
  FROM pg_catalog.pg_index AS idx
  JOIN pg_catalog.pg_class AS c ON c.oid = idx.indexrelid
 CROSS JOIN LATERAL pg_catalog.unnest(idx.indkey) WITH ORDINALITY AS key (attnum, position)
  JOIN pg_catalog.pg_attribute AS att ON att.attrelid = idx.indrelid AND att.attnum = key.attnum
 WHERE idx.indrelid = %(oid)s AND idx.indisunique AND idx.indisvalid
   AND idx.indpred IS NULL AND idx.indexprs IS NULL AND key.position <= idx.indnkeyatts
 GROUP BY c.relname
 ORDER BY c.relname;

-- name: indexed
-- Columns that lead a B-tree index: a range of their values is found without reading the table.
SELECT DISTINCT att.attname AS name
  FROM pg_catalog.pg_index AS idx
  JOIN pg_catalog.pg_class AS c ON c.oid = idx.indexrelid
  JOIN pg_catalog.pg_am AS am ON am.oid = c.relam AND am.amname = 'btree'
  JOIN pg_catalog.pg_attribute AS att ON att.attrelid = idx.indrelid AND att.attnum = idx.indkey[0]
 WHERE idx.indrelid = %(oid)s AND idx.indisvalid AND idx.indpred IS NULL;

-- name: snapshot
SELECT pg_catalog.pg_current_snapshot()::text AS snapshot;

-- name: histogram
-- Bounds between which there are equally many values of an integer column, where it was analyzed. Of a
-- partitioned table's two sets of statistics the one with all partitions.
SELECT s.histogram_bounds::text::int8[] AS bounds
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_stats AS s ON s.schemaname = n.nspname AND s.tablename = c.relname
 WHERE c.oid = %(oid)s AND s.attname = %(name)s
 ORDER BY s.inherited DESC
 LIMIT 1;
