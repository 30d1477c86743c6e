-- name: read
-- What this transaction has locked, to read it or to plan how: a query's tables, the partitions of these, and views.
-- A table's file is told as it is now, and as it was planned: in the snapshot. Of a table that is younger than the
-- snapshot pg_class says nothing; it isn't an index, of which only functions know then. A lock needs the schema, too.
SELECT locked.relation::int8 AS oid,
       n.nspname AS schema_name,
       c.relname AS table_name,
       coalesce(n.nspname || '.' || c.relname, locked.relation::pg_catalog.regclass::text) AS name,
       c.relkind::text AS kind,
       coalesce(c.relispartition, false) AS is_partition,
       pg_catalog.pg_partition_root(locked.relation)::oid::int8 AS root,
       coalesce(pg_catalog.pg_relation_filenode(locked.relation), 0::oid)::int8 AS filenode,
       coalesce(nullif(c.relfilenode, 0::oid),
                CASE WHEN c.oid IS NOT NULL THEN pg_catalog.pg_relation_filenode(c.oid) END,
                0::oid)::int8 AS planned,
       coalesce(pg_catalog.has_table_privilege(c.oid, 'SELECT')
                AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false) AS may_lock
  FROM (SELECT DISTINCT l.relation
          FROM pg_catalog.pg_locks AS l
         WHERE l.locktype = 'relation' AND l.pid = pg_catalog.pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_catalog.pg_database
                              WHERE datname = pg_catalog.current_database())) AS locked
  LEFT JOIN pg_catalog.pg_class AS c ON c.oid = locked.relation
  LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE (c.relkind IN ('r', 'p', 'm', 'f', 'v') AND n.nspname <> 'pg_catalog')
    OR (c.oid IS NULL AND pg_catalog.pg_get_indexdef(locked.relation) IS NULL)
 ORDER BY n.nspname, c.relname;

-- name: view
SELECT CASE c.relkind WHEN 'v' THEN pg_catalog.pg_get_viewdef(c.oid) END AS definition
  FROM pg_catalog.pg_class AS c
 WHERE c.oid = %(oid)s::oid;
