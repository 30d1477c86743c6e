-- name: facts
-- Whether indexes of a table can be dropped and built again. CREATE INDEX needs CREATE on the schema, which
-- the table's owner may have lost. Triggers may look for rows by the indexes; event triggers are called by DDL.
SELECT c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS i
                                        WHERE c.oid IN (i.inhparent, i.inhrelid)) AS is_plain,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owns,
       pg_catalog.has_schema_privilege(c.relnamespace, 'CREATE') AS may_create,
       EXISTS (SELECT FROM pg_catalog.pg_trigger AS t
                WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
                  AND t.tgtype::int & 4 <> 0) AS has_triggers,
       EXISTS (SELECT FROM pg_catalog.pg_event_trigger AS e
                WHERE e.evtenabled IN ('O', 'A') AND e.evtevent <> 'login') AS has_event_triggers
  FROM pg_catalog.pg_class AS c
 WHERE c.oid = %(oid)s;

-- name: rebuildable
-- Indexes that can be dropped and built again. These stay:
-- * what foreign keys, views or extensions depend on, or replication; "i" is what goes with the index;
-- * all, if the load may leave a trigger to the end of the transaction: CREATE INDEX is refused then;
-- * what calls users' functions, since those of an index being built have neither the role's search_path
--   nor its privileges.
SELECT c.relname AS name
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  LEFT JOIN pg_catalog.pg_tablespace AS space ON space.oid = c.reltablespace
  LEFT JOIN pg_catalog.pg_constraint AS con
    ON con.conindid = c.oid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x')
 WHERE i.indrelid = %(oid)s
   AND i.indisvalid AND NOT i.indisreplident
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = i.indrelid AND t.tgdeferrable)
   AND (space.oid IS NULL OR pg_catalog.has_tablespace_privilege(space.oid, 'CREATE'))
   AND NOT EXISTS (
           SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.deptype <> 'i'
              AND (d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid
                   OR d.refclassid = 'pg_catalog.pg_constraint'::regclass AND d.refobjid = con.oid))
   AND NOT EXISTS (
           SELECT FROM pg_catalog.pg_depend AS d
            WHERE (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                   OR d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = con.oid)
              AND (d.deptype IN ('e', 'x')
                   OR d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass)));
