-- name: tables
-- All tables of the database that a set can hold, without those of remote jobs; "ancestors" are those that a table inherits from, at any distance.
WITH RECURSIVE ancestor (oid, parent) AS (
    SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits AS i
     UNION
    SELECT a.oid, i.inhparent
      FROM ancestor AS a
      JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = a.parent
)
SELECT c.oid::int8 AS oid,
       n.nspname AS schema,
       c.relname AS name,
       pg_catalog.pg_table_is_visible(c.oid) AS is_visible,
       ARRAY(SELECT a.parent::int8 FROM ancestor AS a WHERE a.oid = c.oid) AS ancestors
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
   AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
   AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
   AND coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), '') !~ '^airflow-dblink '
   AND c.relname !~ '^dblink_load_[0-9a-f]{16}(_parts)?$'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.objid = c.oid AND d.deptype = 'e');

-- name: schema
SELECT n.nspname FROM pg_catalog.pg_namespace AS n WHERE n.nspname = %(name)s;

-- name: foreign_keys
-- From this table, as facts. Of a "special" one they don't tell all: ON DELETE SET NULL of some columns alone, a
-- temporal one, one that isn't enforced. A partition's own keys belong to the partitioned table's.
SELECT con.conname AS name,
       con.confrelid::int8 AS refers_to,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.unnest(con.conkey) WITH ORDINALITY AS k (number, position)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = con.conrelid AND a.attnum = k.number
              ORDER BY k.position) AS columns,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.unnest(con.confkey) WITH ORDINALITY AS k (number, position)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = con.confrelid AND a.attnum = k.number
              ORDER BY k.position) AS other_columns,
       con.confmatchtype::text AS match,
       con.confupdtype::text AS on_update,
       con.confdeltype::text AS on_delete,
       con.condeferrable AS is_deferrable,
       con.condeferred AS is_deferred,
       con.convalidated AS is_valid,
       coalesce(facts.value ->> 'conperiod', 'false') = 'true'
           OR coalesce(facts.value ->> 'conenforced', 'true') = 'false'
           OR facts.value ->> 'confdelsetcols' IS NOT NULL AS is_special
  FROM pg_catalog.pg_constraint AS con
 CROSS JOIN LATERAL (SELECT pg_catalog.to_jsonb(con)) AS facts (value)
 WHERE con.conrelid = %(oid)s AND con.contype = 'f' AND con.conparentid = 0::oid
 ORDER BY con.conname;

-- name: foreign_sequences
-- Sequences that defaults of the table use, and that belong to no column of it.
SELECT a.attname AS column_name, s.oid::pg_catalog.regclass::text AS sequence
  FROM pg_catalog.pg_attrdef AS def
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = def.adrelid AND a.attnum = def.adnum
  JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_attrdef'::regclass::oid AND d.objid = def.oid
                                AND d.refclassid = 'pg_catalog.pg_class'::regclass::oid
  JOIN pg_catalog.pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
 WHERE def.adrelid = %(oid)s
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS own
                    WHERE own.classid = 'pg_catalog.pg_class'::regclass::oid AND own.objid = s.oid
                      AND own.refobjid = %(oid)s AND own.deptype IN ('a', 'i'))
 ORDER BY a.attname;
