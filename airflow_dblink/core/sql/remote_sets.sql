-- name: names
-- The objects that a temporary table of each name would hide: a relation in the search_path, or a type, since
-- a table makes a type of its name. pg_temp comes first, even before pg_catalog.
SELECT wanted.name,
       (SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)
          FROM pg_catalog.pg_class AS c
          JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid = pg_catalog.to_regclass(pg_catalog.quote_ident(wanted.name))) AS relation,
       (SELECT pg_catalog.format('%%I.%%I', n.nspname, t.typname)
          FROM pg_catalog.pg_type AS t
          JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
         WHERE t.oid = pg_catalog.to_regtype(pg_catalog.quote_ident(wanted.name))) AS type
  FROM pg_catalog.unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, position)
 ORDER BY wanted.position;

-- name: may_stage
SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMP') AS may_stage;

-- name: settings
SELECT wanted.name, pg_catalog.current_setting(wanted.name) AS setting
  FROM pg_catalog.unnest(%(names)s::text[]) AS wanted (name);
