-- name: relation
-- A relation by its name, which PostgreSQL reads itself (search_path, quotes), and the role's privileges on it.
-- to_regclass returns NULL for an unknown name instead of an error. reltuples is -1 if the table was never analyzed;
-- the estimates of partitions are added up.
-- tgtype 7: for each row, before, insert. "may_select": all columns, ctid too. "may_lock": LOCK TABLE in SHARE
-- ROW EXCLUSIVE MODE needs one of three privileges on the whole table.
SELECT c.oid::int8 AS oid,
       n.nspname AS schema_name,
       c.relname AS name,
       c.relkind::text AS kind,
       pg_catalog.has_table_privilege(c.oid, 'SELECT') AS may_select,
       pg_catalog.has_table_privilege(c.oid, 'TRUNCATE') AS may_truncate,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMP') AS may_stage,
       pg_catalog.has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') AS may_lock,
       EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = c.oid) AS has_children,
       ARRAY(SELECT rule.rulename::text FROM pg_catalog.pg_rewrite AS rule
              WHERE rule.ev_class = c.oid AND rule.ev_type = '3' AND rule.ev_enabled IN ('O', 'A')
              ORDER BY rule.rulename) AS insert_rules,
       ARRAY(SELECT rule.rulename::text FROM pg_catalog.pg_rewrite AS rule
              WHERE rule.ev_class = c.oid AND rule.ev_type = '2' AND rule.ev_enabled IN ('O', 'A')
              ORDER BY rule.rulename) AS update_rules,
       c.relrowsecurity AND pg_catalog.row_security_active(c.oid) AS row_security,
       EXISTS (SELECT FROM pg_catalog.pg_trigger AS trigger
                WHERE trigger.tgrelid = c.oid AND trigger.tgenabled IN ('O', 'A')
                  AND trigger.tgtype::int & 7 = 7) AS has_before_insert,
       EXISTS (SELECT FROM pg_catalog.pg_trigger AS trigger
                WHERE trigger.tgrelid = c.oid AND trigger.tgenabled IN ('O', 'A')
                  AND trigger.tgtype::int & 69 = 69) AS has_instead_of_insert,
       (SELECT pg_catalog.sum(greatest(leaf.reltuples, 0))::int8
          FROM pg_catalog.pg_partition_tree(c.oid) AS part
          JOIN pg_catalog.pg_class AS leaf ON leaf.oid = part.relid
         WHERE part.isleaf) AS partition_rows,
       greatest(c.reltuples, 0)::int8 AS table_rows
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid = pg_catalog.to_regclass(%(relname)s);

-- name: inheritance_children
-- All descendants of a table that are no partitions.
WITH RECURSIVE part (relid) AS (
    SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = %(oid)s
     UNION
    SELECT i.inhrelid FROM part JOIN pg_catalog.pg_inherits AS i ON i.inhparent = part.relid
)
SELECT pg_catalog.format('%%s.%%s', n.nspname, c.relname) AS name
  FROM part
  JOIN pg_catalog.pg_class AS c ON c.oid = part.relid AND NOT c.relispartition
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 ORDER BY 1;

-- name: declared
-- Facts about table columns that a query's result doesn't have: whether the type is a domain, and a
-- collation other than the database's own (100 is pg_catalog."default").
SELECT CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(t.oid, NULL) END AS domain,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname) AS collation
  FROM ROWS FROM (pg_catalog.unnest(%(tables)s::oid[]), pg_catalog.unnest(%(numbers)s::int[]))
       WITH ORDINALITY AS wanted (relid, number, position)
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = wanted.relid AND a.attnum = wanted.number
  LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_collation AS c
    ON c.oid = a.attcollation AND c.oid <> 100 AND t.oid <> 'pg_catalog.name'::regtype
  LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.collnamespace
 ORDER BY wanted.position;

-- name: known_collations
SELECT pg_catalog.to_regcollation(wanted.name) IS NOT NULL AS known
  FROM pg_catalog.unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, position)
 ORDER BY wanted.position;

-- name: name_parts
SELECT pg_catalog.parse_ident(%(relname)s) AS parts, pg_catalog.current_schema() AS schema_name;

-- name: database
-- Two connections may lead to one and the same database.
SELECT system_identifier::text AS system_identifier, pg_catalog.current_database() AS name
  FROM pg_catalog.pg_control_system();

-- name: columns
-- Of the same relation: columns that weren't dropped, in table order. A domain is sent in its base type's format, so binary
-- COPY depends on base_type.
SELECT a.attname AS name,
       a.atttypid::int8 AS type,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_name,
       a.attnotnull OR t.typnotnull AS not_null,
       a.attgenerated <> '' AS generated,
       a.attidentity = 'a' AS always_identity,
       a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL AS has_default,
       pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'INSERT') AS may_insert,
       pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'UPDATE') AS may_update,
       pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS may_select
  FROM pg_catalog.pg_attribute AS a
  JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
 WHERE a.attrelid = pg_catalog.to_regclass(%(relname)s) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum;

-- name: types
-- Facts that decide how values of a type can travel. Domains are followed down to their base
-- type; "element" is the element type of a true array. An array has functions for binary even
-- if its elements have none (aclitem[]). "attributes" are those of a composite, or of its array's elements.
-- "equals_schema" is the schema of the type's own =, which its unique indexes use; types without an = of
-- their own use that of pg_catalog. "enum_name" is the enum below a domain, which has no = of its own.
WITH RECURSIVE base AS (
    SELECT t.oid AS wanted, t.oid, t.typtype, t.typbasetype
      FROM pg_catalog.pg_type AS t
     WHERE t.oid = ANY (%(oids)s::oid[])
     UNION ALL
    SELECT b.wanted, t.oid, t.typtype, t.typbasetype
      FROM base AS b
      JOIN pg_catalog.pg_type AS t ON t.oid = b.typbasetype
     WHERE b.typtype = 'd'
)
SELECT b.wanted::int8 AS type,
       t.oid::int8 AS base_type,
       declared.typname AS name,
       t.typname AS base_name,
       t.typcategory::text AS category,
       t.typsend::oid <> 0 AND t.typreceive::oid <> 0
           AND (e.oid IS NULL OR e.typsend::oid <> 0 AND e.typreceive::oid <> 0) AS has_binary,
       e.oid::int8 AS element,
       e.typname AS element_name,
       (SELECT n.nspname
          FROM pg_catalog.pg_opclass AS class
          JOIN pg_catalog.pg_am AS am ON am.oid = class.opcmethod AND am.amname = 'btree'
          JOIN pg_catalog.pg_amop AS member
            ON member.amopfamily = class.opcfamily AND member.amopstrategy = 3
           AND member.amoplefttype = t.oid AND member.amoprighttype = t.oid
          JOIN pg_catalog.pg_operator AS operator ON operator.oid = member.amopopr AND operator.oprname = '='
          JOIN pg_catalog.pg_namespace AS n ON n.oid = operator.oprnamespace
         WHERE class.opcintype = t.oid AND class.opcdefault) AS equals_schema,
       pg_catalog.format('%%I.%%I', base_schema.nspname, t.typname) AS base_full_name,
       CASE WHEN t.typtype = 'e'
            THEN (SELECT pg_catalog.format('%%I.%%I', n.nspname, t.typname)
                    FROM pg_catalog.pg_namespace AS n WHERE n.oid = t.typnamespace) END AS enum_name,
       (SELECT p.proname FROM pg_catalog.pg_proc AS p
         WHERE p.oid = t.typsend AND p.pronamespace = 'pg_catalog'::regnamespace) AS send,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = greatest(t.typrelid, e.typrelid) AND a.attrelid <> 0
                AND a.attnum > 0 AND NOT a.attisdropped
              ORDER BY a.attnum) AS attributes
  FROM base AS b
  JOIN pg_catalog.pg_type AS t ON t.oid = b.oid
  JOIN pg_catalog.pg_namespace AS base_schema ON base_schema.oid = t.typnamespace
  JOIN pg_catalog.pg_type AS declared ON declared.oid = b.wanted
  LEFT JOIN pg_catalog.pg_type AS e
    ON e.oid = t.typelem AND t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc
 WHERE b.typtype <> 'd';

-- name: format_types
SELECT pg_catalog.format_type(wanted.type, wanted.modifier)
  FROM ROWS FROM (pg_catalog.unnest(%(types)s::oid[]), pg_catalog.unnest(%(modifiers)s::int[]))
       WITH ORDINALITY AS wanted (type, modifier, position)
 ORDER BY wanted.position;

-- name: types_by_name
-- Types by names from another server. NULL for a type that this database doesn't know, or that
-- holds a stranger's domain, whose CHECK would run as this role.
SELECT (SELECT pg_catalog.to_regtype(wanted.name)::oid::int8
         WHERE NOT EXISTS (
                   WITH RECURSIVE part (oid) AS (
                       SELECT pg_catalog.to_regtype(wanted.name)::oid
                        UNION
                       SELECT inner_type.oid
                         FROM part
                         JOIN pg_catalog.pg_type AS t ON t.oid = part.oid
                        CROSS JOIN LATERAL (
                                  SELECT t.typelem
                                   UNION ALL
                                  SELECT t.typbasetype
                                   UNION ALL
                                  SELECT r.rngsubtype FROM pg_catalog.pg_range AS r
                                   WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
                                   UNION ALL
                                  SELECT a.atttypid
                                    FROM pg_catalog.pg_attribute AS a
                                   WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                              ) AS inner_type (oid)
                   )
                   SELECT FROM part
                     JOIN pg_catalog.pg_type AS d ON d.oid = part.oid AND d.typtype = 'd'
                     JOIN pg_catalog.pg_roles AS owner ON owner.oid = d.typowner
                    WHERE NOT owner.rolsuper AND NOT pg_catalog.pg_has_role(d.typowner, 'USAGE')
                      AND NOT EXISTS (SELECT FROM pg_catalog.pg_database AS own
                                       WHERE own.datname = pg_catalog.current_database()
                                         AND own.datdba = d.typowner))) AS type
  FROM pg_catalog.unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, position)
 ORDER BY wanted.position;

-- name: primary_key
-- Key columns in index order; no row means "no primary key". indkey also has the INCLUDE columns;
-- indnkeyatts is the number of key columns.
SELECT att.attname AS name
  FROM pg_catalog.pg_index AS idx
 CROSS JOIN LATERAL pg_catalog.unnest(idx.indkey) WITH ORDINALITY AS key (attnum, position)
  JOIN pg_catalog.pg_attribute AS att ON att.attrelid = idx.indrelid AND att.attnum = key.attnum
 WHERE idx.indrelid = pg_catalog.to_regclass(%(relname)s) AND idx.indisprimary AND key.position <= idx.indnkeyatts
 ORDER BY key.position;

-- name: unique_indexes
-- All unique indexes that are neither partial nor on expressions, with their columns in index order. ON CONFLICT
-- can use immediate ones, that is, not those of a DEFERRABLE constraint. As JSON, since PostgreSQL 14 has no
-- indnullsnotdistinct. The index, not the column, decides which values are equal if it has a collation, or an
-- operator class with another =. All deterministic collations agree: texts are equal if their bytes are.
SELECT array_agg(att.attname ORDER BY key.position)::text[] AS columns, idx.indimmediate AS is_immediate,
       pg_catalog.bool_or(
           coalesce((pg_catalog.to_jsonb(idx) ->> 'indnullsnotdistinct')::bool, false)) AS nulls_are_equal,
       array_agg(CASE WHEN given.oid <> att.attcollation
                           AND NOT (given.collisdeterministic AND own.collisdeterministic)
                      THEN pg_catalog.format('%%I.%%I', n.nspname, given.collname) END
                 ORDER BY key.position)::text[] AS collations,
       pg_catalog.bool_and(coalesce(given.collisdeterministic, true)) AS is_deterministic,
       pg_catalog.bool_and(class.opcdefault OR EXISTS (
           SELECT FROM pg_catalog.pg_amop AS member
             JOIN pg_catalog.pg_amop AS usual
               ON usual.amopopr = member.amopopr AND usual.amopstrategy = member.amopstrategy
             JOIN pg_catalog.pg_opclass AS common
               ON common.opcfamily = usual.amopfamily AND common.opcmethod = class.opcmethod
              AND common.opcintype = class.opcintype AND common.opcdefault
            WHERE member.amopfamily = class.opcfamily AND member.amopstrategy = 3
              AND member.amoplefttype = class.opcintype AND member.amoprighttype = class.opcintype)) AS is_plain
  FROM pg_catalog.pg_index AS idx
  JOIN pg_catalog.pg_class AS c ON c.oid = idx.indexrelid
 CROSS JOIN LATERAL pg_catalog.unnest(idx.indkey) WITH ORDINALITY AS key (attnum, position)
  JOIN pg_catalog.pg_attribute AS att ON att.attrelid = idx.indrelid AND att.attnum = key.attnum
  JOIN pg_catalog.pg_opclass AS class ON class.oid = idx.indclass[key.position - 1]
  LEFT JOIN pg_catalog.pg_collation AS given ON given.oid = idx.indcollation[key.position - 1]
  LEFT JOIN pg_catalog.pg_collation AS own ON own.oid = att.attcollation
  LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = given.collnamespace
 WHERE idx.indrelid = pg_catalog.to_regclass(%(relname)s) AND idx.indisunique AND idx.indisvalid
   AND idx.indpred IS NULL AND idx.indexprs IS NULL AND key.position <= idx.indnkeyatts
 GROUP BY c.relname, idx.indimmediate
 ORDER BY c.relname;

-- name: assignable
-- Whether PostgreSQL would assign a value of the one type to a column of the other by itself
-- (implicit or assignment cast; anything to a string type). For types that are built in on both servers.
SELECT EXISTS (SELECT FROM pg_catalog.pg_cast
                WHERE castsource = %(source)s AND casttarget = %(target)s AND castcontext IN ('a', 'i'))
       OR (SELECT typcategory = 'S' FROM pg_catalog.pg_type WHERE oid = %(target)s);

-- name: cast_function
-- The function by which a value of the one type is assigned to a column of the other.
SELECT castfunc::regproc::text AS name
  FROM pg_catalog.pg_cast
 WHERE castsource = %(source)s AND casttarget = %(target)s AND castcontext IN ('a', 'i') AND castmethod = 'f';

-- name: rounded
-- Columns whose declared type rounds assigned values (precision, scale, fields). Domains are followed down to their
-- base type; the type modifier is the innermost one.
WITH RECURSIVE base (name, type, modifier, inner_type, inner_modifier) AS (
    SELECT a.attname, t.oid, a.atttypmod, t.typbasetype, t.typtypmod
      FROM pg_catalog.pg_attribute AS a
      JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
     WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
     UNION ALL
    SELECT b.name, t.oid, greatest(b.modifier, b.inner_modifier), t.typbasetype, t.typtypmod
      FROM base AS b
      JOIN pg_catalog.pg_type AS t ON t.oid = b.inner_type
)
SELECT b.name, b.type, b.modifier
  FROM base AS b
  JOIN pg_catalog.pg_type AS t ON t.oid = b.type
  LEFT JOIN pg_catalog.pg_type AS e ON e.oid = t.typelem AND t.typlen = -1
 WHERE b.inner_type = 0 AND b.modifier >= 0
   AND coalesce(e.typname, t.typname)
       IN ('numeric', 'time', 'timetz', 'timestamp', 'timestamptz', 'interval');

-- name: rewritten
-- A table that this transaction has locked, and that was truncated, rewritten or replaced after its snapshot. Such a
-- table seems empty: its old rows are gone, and its new ones aren't in the snapshot. pg_class shows the file at the
-- time of the snapshot, pg_relation_filenode() the file now.
-- pg_get_indexdef() locks the index's table, so it must only get relations that this session has locked itself.
-- MATERIALIZED makes sure of that; otherwise the planner could call it for the locks of all sessions, and wait.
WITH own AS MATERIALIZED (
    SELECT lock.relation
      FROM pg_catalog.pg_locks AS lock
     WHERE lock.pid = pg_catalog.pg_backend_pid() AND lock.locktype = 'relation' AND lock.granted
       AND lock.relation >= 16384
       AND lock.database = (SELECT oid FROM pg_catalog.pg_database
                             WHERE datname = pg_catalog.current_database())
)
SELECT own.relation::regclass::text AS name
  FROM own
  LEFT JOIN pg_catalog.pg_class AS c ON c.oid = own.relation
 WHERE CASE WHEN c.oid IS NULL THEN pg_catalog.pg_get_indexdef(own.relation) IS NULL
            ELSE c.relkind NOT IN ('i', 'I') AND c.relfilenode <> 0
                 AND c.relfilenode <> pg_catalog.pg_relation_filenode(c.oid) END
 LIMIT 1;
