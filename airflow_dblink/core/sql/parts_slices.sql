-- name: leaves
-- The tables that hold a table's rows: itself, its partitions, its inheritance children. pg_table_size counts
-- TOAST, too. A table that isn't a heap has other places of rows, or none. The file is the snapshot's: a table that
-- was truncated since then has another one, and looks empty. A function would tell the new one; of some system tables
-- only the function knows.
WITH RECURSIVE tree (oid) AS (
    SELECT %(oid)s::oid
     UNION
    SELECT i.inhrelid
      FROM tree
      JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
)
SELECT c.oid::int8 AS oid,
       n.nspname AS schema_name,
       c.relname AS name,
       c.relkind = 'f' AS is_foreign,
       coalesce(am.amname = 'heap', false) AS is_heap,
       coalesce(nullif(c.relfilenode, 0::oid), pg_catalog.pg_relation_filenode(c.oid))::int8 AS filenode,
       coalesce(pg_catalog.pg_table_size(c.oid), 0) AS bytes,
       coalesce(pg_catalog.pg_relation_size(c.oid), 0)
           / pg_catalog.current_setting('block_size')::int8 AS pages,
       pg_catalog.has_table_privilege(c.oid, 'SELECT') AS may_select,
       c.relrowsecurity AND pg_catalog.row_security_active(c.oid) AS row_security
  FROM tree
  JOIN pg_catalog.pg_class AS c ON c.oid = tree.oid AND c.relkind <> 'p'
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
 ORDER BY n.nspname, c.relname;

-- name: leaf
-- What the name of a leaf means now: names can change hands if the table isn't locked.
SELECT n.nspname AS schema_name, c.relname AS name
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid = %(oid)s::oid;

-- name: file
-- Another file: the table was truncated or rewritten, and its rows have other places. Functions see what is
-- committed, whatever the transaction's snapshot.
SELECT pg_catalog.to_regclass(%(name)s)::oid::int8 AS oid,
       pg_catalog.pg_relation_filenode(pg_catalog.to_regclass(%(name)s))::int8 AS filenode;
