-- name: defaults
-- Defaults of a table's columns, without those of identity and generated columns.
SELECT a.attname AS name, pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expression
  FROM pg_catalog.pg_attrdef AS d
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
 WHERE d.adrelid = %(oid)s AND a.attgenerated = ''
 ORDER BY a.attnum;

-- name: checks
-- As JSON, since PostgreSQL before 18 has no conenforced.
SELECT con.conname AS name, pg_catalog.pg_get_expr(con.conbin, con.conrelid) AS expression,
       con.connoinherit AS no_inherit, con.convalidated AS is_validated,
       coalesce((pg_catalog.to_jsonb(con) ->> 'conenforced')::bool, true) AS is_enforced,
       pg_catalog.obj_description(con.oid, 'pg_constraint') AS comment
  FROM pg_catalog.pg_constraint AS con
 WHERE con.conrelid = %(oid)s AND con.contype = 'c'
 ORDER BY con.conname;

-- name: sequences
-- Sequences that belong to a column: of an identity column ("identity" is a or d), or by OWNED BY. "mention" is
-- how a default names it.
SELECT a.attname AS column_name, s.relname AS name, a.attidentity::text AS identity,
       pg_catalog.format('%%L::regclass', s.oid::regclass::text) AS mention,
       pg_catalog.format_type(seq.seqtypid, NULL) AS type,
       seq.seqincrement AS step, seq.seqmin AS lowest, seq.seqmax AS highest, seq.seqstart AS start,
       seq.seqcache AS cache, seq.seqcycle AS cycles
  FROM pg_catalog.pg_depend AS d
  JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_catalog.pg_sequence AS seq ON seq.seqrelid = s.oid
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
   AND d.refobjid = %(oid)s AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
 ORDER BY a.attnum, s.relname;

-- name: comments
-- On the table (no name) and on its columns.
SELECT a.attname AS name, d.description AS comment
  FROM pg_catalog.pg_description AS d
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND a.attnum > 0
 WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = %(oid)s
 ORDER BY d.objsubid;

-- name: left_out
-- What belongs to a table and isn't made with another one like it.
WITH part (step, name) AS (
    SELECT 1, 'foreign key ' || conname
      FROM pg_catalog.pg_constraint WHERE conrelid = %(oid)s AND contype = 'f' AND %(keys)s
     UNION ALL
    SELECT 2, 'trigger ' || tgname FROM pg_catalog.pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal
     UNION ALL
    SELECT 3, 'expression of the generated column ' || attname
      FROM pg_catalog.pg_attribute WHERE attrelid = %(oid)s AND attgenerated <> '' AND NOT attisdropped
     UNION ALL
    SELECT 4, 'row security' FROM pg_catalog.pg_class WHERE oid = %(oid)s AND relrowsecurity
)
SELECT name FROM part ORDER BY step, name;

-- name: calls
-- Functions of PostgreSQL's own among %(names)s that the source's expressions may not call here: they may change
-- something, or run a query that they are given. "strangers" looks for others.
SELECT DISTINCT p.proname AS name
  FROM pg_catalog.pg_proc AS p
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (%(names)s)
   AND (p.provolatile = 'v'
        AND p.proname <> ALL ('{nextval,random,random_normal,gen_random_uuid,uuidv4,uuidv7,clock_timestamp,timeofday}')
        OR p.proname LIKE '%%\_to\_xml%%')
 ORDER BY p.proname;

-- name: strangers
-- What defaults, constraints and indexes of a table may not use: functions, operators and types that belong neither
-- to a superuser nor to the database's owner nor to this role, and functions that may change something. (Those of
-- pg_catalog aren't in pg_depend.)
WITH piece (classid, objid) AS (
    SELECT 'pg_catalog.pg_attrdef'::regclass::oid, oid FROM pg_catalog.pg_attrdef WHERE adrelid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_constraint'::regclass::oid, oid FROM pg_catalog.pg_constraint WHERE conrelid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_class'::regclass::oid, indexrelid FROM pg_catalog.pg_index WHERE indrelid = %(oid)s
)
SELECT DISTINCT pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0) AS name
  FROM piece
  JOIN pg_catalog.pg_depend AS d ON d.classid = piece.classid AND d.objid = piece.objid
  LEFT JOIN pg_catalog.pg_proc AS p
    ON d.refclassid = 'pg_catalog.pg_proc'::regclass AND p.oid = d.refobjid
  LEFT JOIN pg_catalog.pg_operator AS o
    ON d.refclassid = 'pg_catalog.pg_operator'::regclass AND o.oid = d.refobjid
  LEFT JOIN pg_catalog.pg_type AS t
    ON d.refclassid = 'pg_catalog.pg_type'::regclass AND t.oid = d.refobjid
  JOIN pg_catalog.pg_roles AS owner ON owner.oid IN (p.proowner, o.oprowner, t.typowner)
 WHERE p.provolatile = 'v'
       AND p.proname <> ALL ('{uuid_generate_v1,uuid_generate_v1mc,uuid_generate_v4,gen_random_uuid,gen_random_bytes}')
    OR NOT owner.rolsuper AND NOT pg_catalog.pg_has_role(owner.oid, 'USAGE')
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_database AS own
                        WHERE own.datname = pg_catalog.current_database() AND own.datdba = owner.oid)
 ORDER BY name;

-- name: strange_names
-- Functions, operators and types by schema and name (%(schemas)s and %(names)s), whatever their arguments, that belong to
-- strangers: neither to a superuser nor to the database's owner nor to this role.
WITH thing (kind, schema_name, name, owner) AS (
    SELECT 'function', p.pronamespace, p.proname, p.proowner FROM pg_catalog.pg_proc AS p
     UNION ALL
    SELECT 'operator', o.oprnamespace, o.oprname, o.oprowner FROM pg_catalog.pg_operator AS o
     UNION ALL
    SELECT 'type', t.typnamespace, t.typname, t.typowner FROM pg_catalog.pg_type AS t
)
SELECT DISTINCT pg_catalog.concat(thing.kind, ' ', pg_catalog.quote_ident(n.nspname), '.', thing.name) AS name
  FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[])) AS mention (schema_name, name)
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = mention.schema_name
  JOIN thing ON thing.schema_name = n.oid AND thing.name = mention.name
  JOIN pg_catalog.pg_roles AS owner ON owner.oid = thing.owner
 WHERE NOT owner.rolsuper AND NOT pg_catalog.pg_has_role(owner.oid, 'USAGE')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_database AS own
                    WHERE own.datname = pg_catalog.current_database() AND own.datdba = owner.oid)
 ORDER BY name;
