-- name: privilege
-- Reads the name as dblink does (textToQualifiedNameList) and raises the same errors.
SELECT pg_catalog.has_table_privilege(%(value)s::pg_catalog.text, 'SELECT');

-- name: relation
-- to_regclass reads names in the same way, except that a number is an oid, and "-" is no name: hence
-- the space. The first four columns are the state that a cached shape depends on.
SELECT c.oid,
       pg_catalog.pg_table_is_visible(c.oid),
       pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       pg_catalog.current_setting('quote_all_identifiers'),
       c.relkind,
       c.relname,
       pg_catalog.quote_ident(c.relname),
       c.relnamespace::pg_catalog.regnamespace,
       c.reltype <> 0
  FROM pg_catalog.pg_class AS c
 WHERE c.oid = pg_catalog.to_regclass(' ' || %(value)s::pg_catalog.text)::pg_catalog.oid;

-- name: columns
-- Columns that weren't dropped, in table order. The third and fourth column are for users' types (citext). The
-- third is the schema of the type's own =, if search_path contains it, since PostgreSQL would take that =. The
-- fourth is the type without domains, since somebody may have put another = for the domain into that schema.
SELECT a.attname,
       pg_catalog.quote_ident(a.attname),
       own.schema,
       own.type
  FROM pg_catalog.pg_attribute AS a
  JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
  LEFT JOIN LATERAL (
           WITH RECURSIVE base AS (
               SELECT t.oid, t.typtype, t.typbasetype
                UNION ALL
               SELECT inner_type.oid, inner_type.typtype, inner_type.typbasetype
                 FROM base JOIN pg_catalog.pg_type AS inner_type ON inner_type.oid = base.typbasetype
                WHERE base.typtype = 'd'
           )
           SELECT pg_catalog.quote_ident(n.nspname) AS schema,
                  pg_catalog.format('%%I.%%I', type_schema.nspname, base_type.typname) AS type
             FROM base
             JOIN pg_catalog.pg_type AS base_type ON base_type.oid = base.oid
             JOIN pg_catalog.pg_namespace AS type_schema ON type_schema.oid = base_type.typnamespace
             JOIN pg_catalog.pg_opclass AS class ON class.opcintype = base.oid AND class.opcdefault
             JOIN pg_catalog.pg_am AS am ON am.oid = class.opcmethod AND am.amname = 'btree'
             JOIN pg_catalog.pg_amop AS member
               ON member.amopfamily = class.opcfamily AND member.amopstrategy = 3
              AND member.amoplefttype = base.oid AND member.amoprighttype = base.oid
             JOIN pg_catalog.pg_operator AS operator ON operator.oid = member.amopopr AND operator.oprname = '='
             JOIN pg_catalog.pg_namespace AS n ON n.oid = operator.oprnamespace
            WHERE base.typtype <> 'd' AND n.nspname <> 'pg_catalog'
              AND n.nspname = ANY (pg_catalog.current_schemas(true))
       ) AS own ON t.typnamespace <> 'pg_catalog'::regnamespace
 WHERE a.attrelid = pg_catalog.to_regclass(' ' || %(value)s::pg_catalog.text)::pg_catalog.oid
   AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum;

-- name: primary_key
-- Key columns in index order. indkey also has the INCLUDE columns; indnkeyatts is the number of key columns.
SELECT key.position, a.attname
  FROM pg_catalog.pg_index AS i
 CROSS JOIN LATERAL pg_catalog.unnest(i.indkey) WITH ORDINALITY AS key (attnum, position)
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
 WHERE i.indrelid = pg_catalog.to_regclass(' ' || %(value)s::pg_catalog.text)::pg_catalog.oid
   AND i.indisprimary AND key.position <= i.indnkeyatts
 ORDER BY key.position;

-- name: key_types
-- The type that PostgreSQL gives a literal that is compared with each key column; it finds a parameter's
-- type in the same way. The second column tells whether a cast from text reads a value as the type's input
-- function does. A cast with a function of its own (name, "char") may not, and one to a pseudo-type
-- (record) can't.
SELECT t.typnamespace::pg_catalog.regnamespace || '.' || pg_catalog.quote_ident(t.typname),
       t.typtype <> 'p'
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_cast AS c
                        WHERE c.castsource = 'pg_catalog.text'::pg_catalog.regtype
                          AND c.casttarget = t.oid AND c.castmethod = 'f')
  FROM pg_catalog.pg_prepared_statements AS p
 CROSS JOIN LATERAL pg_catalog.unnest(p.parameter_types) WITH ORDINALITY AS key (type, position)
  JOIN pg_catalog.pg_type AS t ON t.oid = key.type
 WHERE p.name = %(value)s
 ORDER BY key.position;
