-- name: indexes
-- All indexes of a table, with their constraints. "head" is what the definition begins with up to the access
-- method; what follows it names neither the index nor the table. Through to_jsonb, since not every version has the
-- column: conperiod (18). The target is -1 or NULL if it is the default.
SELECT c.relname AS name, i.indisunique AS is_unique, i.indisvalid AS is_valid, i.indisclustered AS is_clustered,
       i.indisreplident AS is_replica_identity,
       coalesce(space.spcname, '') AS tablespace,
       pg_catalog.pg_get_indexdef(c.oid) AS definition,
       pg_catalog.format('CREATE %%sINDEX %%I ON %%s%%I.%%I USING ', CASE WHEN i.indisunique THEN 'UNIQUE ' END,
                         c.relname, CASE WHEN c.relkind = 'I' THEN 'ONLY ' END, n.nspname, t.relname) AS head,
       coalesce(c.reloptions, '{}') AS options,
       con.contype::text AS constraint_type,
       pg_catalog.pg_get_constraintdef(con.oid) AS constraint_definition,
       coalesce((pg_catalog.to_jsonb(con) ->> 'conperiod')::bool, false) AS is_over_periods,
       concat(CASE WHEN con.condeferrable THEN ' DEFERRABLE' END,
              CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' END) AS deferral,
       pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       pg_catalog.obj_description(con.oid, 'pg_constraint') AS constraint_comment,
       ARRAY(SELECT a.attnum::int FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attstattarget >= 0 ORDER BY a.attnum) AS target_columns,
       ARRAY(SELECT a.attstattarget::int FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attstattarget >= 0 ORDER BY a.attnum) AS targets
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_tablespace AS space ON space.oid = c.reltablespace
  LEFT JOIN pg_catalog.pg_constraint AS con
    ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x')
 WHERE i.indrelid = %(oid)s
 ORDER BY i.indisprimary DESC, c.relname;

-- name: foreign_keys
-- From this table. "reference" is where the definition names the other table. VALIDATE CONSTRAINT leaves a part of the
-- constraint as it is if the other table has partitions: "is_whole" is then true.
SELECT con.conname AS name,
       pg_catalog.pg_get_constraintdef(con.oid) AS definition,
       con.confrelid::int8 AS refers_to,
       pg_catalog.format(') REFERENCES %%s(', con.confrelid::pg_catalog.regclass) AS reference,
       NOT con.convalidated OR other.relkind = 'p' AS is_whole,
       pg_catalog.obj_description(con.oid, 'pg_constraint') AS comment
  FROM pg_catalog.pg_constraint AS con
  JOIN pg_catalog.pg_class AS other ON other.oid = con.confrelid
 WHERE con.conrelid = %(oid)s AND con.contype = 'f' AND con.conparentid = 0::oid
 ORDER BY con.conname;

-- name: statistics
-- Extended statistics. The kinds of those on one expression alone can't be named.
SELECT s.stxname AS name, n.nspname AS schema_name,
       pg_catalog.pg_get_statisticsobjdef_columns(s.oid) AS columns,
       CASE WHEN s.stxkind <> '{e}'::"char"[]
            THEN ARRAY(SELECT CASE kind WHEN 'd' THEN 'ndistinct' WHEN 'f' THEN 'dependencies' ELSE 'mcv' END
                         FROM pg_catalog.unnest(s.stxkind::text[]) AS kind WHERE kind <> 'e') END AS kinds,
       nullif(s.stxstattarget::int, -1) AS target,
       owner.rolname AS owner,
       pg_catalog.obj_description(s.oid, 'pg_statistic_ext') AS comment
  FROM pg_catalog.pg_statistic_ext AS s
  JOIN pg_catalog.pg_namespace AS n ON n.oid = s.stxnamespace
  JOIN pg_catalog.pg_roles AS owner ON owner.oid = s.stxowner
 WHERE s.stxrelid = %(oid)s
 ORDER BY s.stxname;

-- name: storage
-- What decides how rows are stored, and how much ANALYZE looks at: statements for the table %(on)s, which has the
-- same columns and no rows yet. Options of columns are n_distinct and n_distinct_inherited; Debian's 15.20 keeps a number
-- of its own among them (pg_attver), which differs by table and can't be set.
WITH options (name, option) AS (
    SELECT '', pg_catalog.unnest(c.reloptions) FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s
     UNION ALL
    SELECT 'toast.', pg_catalog.unnest(toast.reloptions)
      FROM pg_catalog.pg_class AS c
      JOIN pg_catalog.pg_class AS toast ON toast.oid = c.reltoastrelid
     WHERE c.oid = %(oid)s
)
SELECT pg_catalog.format('ALTER TABLE %%s SET (%%s%%I = %%L)', %(on)s::text, name,
                         pg_catalog.split_part(option, '=', 1),
                         pg_catalog.substr(option, pg_catalog.strpos(option, '=') + 1)) AS statement
  FROM options
 UNION ALL
SELECT pg_catalog.format('ALTER TABLE %%s ALTER COLUMN %%I SET STATISTICS %%s', %(on)s::text, a.attname,
                         a.attstattarget)
  FROM pg_catalog.pg_attribute AS a
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget >= 0
 UNION ALL
SELECT pg_catalog.format('ALTER TABLE %%s ALTER COLUMN %%I SET (%%s)', %(on)s::text, a.attname, option)
  FROM pg_catalog.pg_attribute AS a
 CROSS JOIN LATERAL pg_catalog.unnest(a.attoptions) AS option
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND option LIKE 'n\_distinct%%';

-- name: grants
-- Statements that give the table %(on)s (or the sequence) the privileges of another, %(oid)s: first those that it has
-- by now (ALTER DEFAULT PRIVILEGES) are revoked. None if both have nothing but an owner's. All are granted by the owner.
WITH old AS (
    SELECT c.relowner, c.relacl,
           coalesce(c.relacl, pg_catalog.acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)) AS acl,
           CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind
      FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s
), new AS (
    SELECT c.relacl FROM pg_catalog.pg_class AS c WHERE c.oid = %(new_oid)s
), wanted AS (
    SELECT old.relowner, old.acl, old.kind, new.relacl AS now
      FROM old CROSS JOIN new
     WHERE old.relacl IS NOT NULL OR new.relacl IS NOT NULL
), statement (step, text) AS (
    SELECT DISTINCT 1, pg_catalog.format('REVOKE ALL ON %%s %%s FROM %%s', wanted.kind, %(on)s::text,
                                pg_catalog.string_agg(DISTINCT coalesce(pg_catalog.quote_ident(role.rolname), 'PUBLIC'), ', '))
      FROM wanted
     CROSS JOIN LATERAL (SELECT wanted.relowner AS oid
                          UNION
                         SELECT entry.grantee FROM pg_catalog.aclexplode(wanted.now) AS entry) AS grantee
      LEFT JOIN pg_catalog.pg_roles AS role ON role.oid = grantee.oid
     GROUP BY wanted.kind
     UNION ALL
    SELECT 2, pg_catalog.format('GRANT %%s ON %%s %%s TO %%s%%s', entry.privilege_type, wanted.kind, %(on)s::text,
                                coalesce(pg_catalog.quote_ident(role.rolname), 'PUBLIC'),
                                CASE WHEN entry.is_grantable THEN ' WITH GRANT OPTION' END)
      FROM wanted
     CROSS JOIN LATERAL pg_catalog.aclexplode(wanted.acl) AS entry
      LEFT JOIN pg_catalog.pg_roles AS role ON role.oid = entry.grantee
     UNION ALL
    SELECT 3, pg_catalog.format('GRANT %%s (%%I) ON TABLE %%s TO %%s%%s', entry.privilege_type, a.attname, %(on)s::text,
                                coalesce(pg_catalog.quote_ident(role.rolname), 'PUBLIC'),
                                CASE WHEN entry.is_grantable THEN ' WITH GRANT OPTION' END)
      FROM pg_catalog.pg_attribute AS a
     CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS entry
      LEFT JOIN pg_catalog.pg_roles AS role ON role.oid = entry.grantee
     WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
)
SELECT text AS statement FROM statement ORDER BY step, text;

-- name: protection
-- Row security, policies and triggers: statements for a table of the same name, which the texts of the server hold.
WITH statement (step, name, text) AS (
    SELECT 1, '', pg_catalog.format('ALTER TABLE %%s ENABLE ROW LEVEL SECURITY', %(on)s::text)
      FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s AND c.relrowsecurity
     UNION ALL
    SELECT 2, '', pg_catalog.format('ALTER TABLE %%s FORCE ROW LEVEL SECURITY', %(on)s::text)
      FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s AND c.relforcerowsecurity
     UNION ALL
    SELECT 3, p.polname, pg_catalog.format(
               'CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s%%s%%s', p.polname, %(on)s::text,
               CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
               CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                             WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
               (SELECT pg_catalog.string_agg(coalesce(pg_catalog.quote_ident(role.rolname), 'PUBLIC'), ', ')
                  FROM pg_catalog.unnest(p.polroles) AS wanted (oid)
                  LEFT JOIN pg_catalog.pg_roles AS role ON role.oid = wanted.oid),
               ' USING (' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')',
               ' WITH CHECK (' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) || ')')
      FROM pg_catalog.pg_policy AS p WHERE p.polrelid = %(oid)s
     UNION ALL
    SELECT 4, t.tgname, pg_catalog.pg_get_triggerdef(t.oid)
      FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal
     UNION ALL
    SELECT 5, t.tgname, pg_catalog.format(
               'ALTER TABLE %%s %%s TRIGGER %%I', %(on)s::text,
               CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, t.tgname)
      FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND t.tgenabled <> 'O'
     UNION ALL
    SELECT 6, '', pg_catalog.format(
               'ALTER TABLE %%s REPLICA IDENTITY %%s', %(on)s::text,
               CASE c.relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
      FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s AND c.relreplident IN ('f', 'n')
)
SELECT text AS statement FROM statement ORDER BY step, name;

-- name: comments
-- On the table, its columns, its constraints without an index or a foreign key, and its triggers and policies, which
-- "protection" makes.
SELECT pg_catalog.format('COMMENT ON TABLE %%s IS %%L', %(on)s::text, d.description) AS statement
  FROM pg_catalog.pg_description AS d
 WHERE d.classoid = 'pg_catalog.pg_class'::regclass::oid AND d.objoid = %(oid)s AND d.objsubid = 0
 UNION ALL
SELECT pg_catalog.format('COMMENT ON COLUMN %%s.%%I IS %%L', %(on)s::text, a.attname, d.description)
  FROM pg_catalog.pg_description AS d
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.objoid AND a.attnum = d.objsubid
 WHERE d.classoid = 'pg_catalog.pg_class'::regclass::oid AND d.objoid = %(oid)s AND d.objsubid > 0
 UNION ALL
SELECT pg_catalog.format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', con.conname, %(on)s::text, d.description)
  FROM pg_catalog.pg_constraint AS con
  JOIN pg_catalog.pg_description AS d
    ON d.classoid = 'pg_catalog.pg_constraint'::regclass::oid AND d.objoid = con.oid
 WHERE con.conrelid = %(oid)s AND con.contype NOT IN ('p', 'u', 'x', 'f', 't')
 UNION ALL
SELECT pg_catalog.format('COMMENT ON TRIGGER %%I ON %%s IS %%L', t.tgname, %(on)s::text, d.description)
  FROM pg_catalog.pg_trigger AS t
  JOIN pg_catalog.pg_description AS d ON d.classoid = 'pg_catalog.pg_trigger'::regclass::oid AND d.objoid = t.oid
 WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal
 UNION ALL
SELECT pg_catalog.format('COMMENT ON POLICY %%I ON %%s IS %%L', p.polname, %(on)s::text, d.description)
  FROM pg_catalog.pg_policy AS p
  JOIN pg_catalog.pg_description AS d ON d.classoid = 'pg_catalog.pg_policy'::regclass::oid AND d.objoid = p.oid
 WHERE p.polrelid = %(oid)s;

-- name: own_sequences
-- Sequences that belong to a column: of an identity column ("is_identity"), or by OWNED BY.
SELECT s.oid::int8 AS oid, s.relname AS name, n.nspname AS schema_name, a.attname AS column_name,
       d.deptype = 'i' AS is_identity, pg_catalog.format_type(seq.seqtypid, NULL) AS type_name,
       pg_catalog.obj_description(s.oid, 'pg_class') AS comment
  FROM pg_catalog.pg_depend AS d
  JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
  JOIN pg_catalog.pg_sequence AS seq ON seq.seqrelid = s.oid
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.refclassid = 'pg_catalog.pg_class'::regclass::oid
   AND d.refobjid = %(oid)s AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
 ORDER BY s.relname;

-- name: place
-- Where and how a table is stored, and whose it is.
SELECT c.relpersistence = 'u' AS is_unlogged,
       coalesce(space.spcname, own.spcname) AS tablespace,
       am.amname AS access_method,
       owner.rolname AS owner,
       c.relowner = (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user) AS is_own
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_roles AS owner ON owner.oid = c.relowner
  JOIN pg_catalog.pg_database AS db ON db.datname = pg_catalog.current_database()
  JOIN pg_catalog.pg_tablespace AS own ON own.oid = db.dattablespace
  LEFT JOIN pg_catalog.pg_tablespace AS space ON space.oid = c.reltablespace
  JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
 WHERE c.oid = %(oid)s;
