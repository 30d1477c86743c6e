-- name: definition
-- What of a table's definition is copied when the load is planned, to be compared with what it is when it is swapped.
-- Options of columns are n_distinct and n_distinct_inherited; pg_attver, which Debian's 15.20 keeps there, is none.
SELECT a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod)
       || coalesce(' collate ' || a.attcollation::text, '')
       || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
       || ' ' || a.attgenerated::text || a.attidentity::text
       || coalesce(' default ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
       || ' storage ' || a.attstorage::text || a.attcompression::text
       || coalesce(' statistics ' || nullif(a.attstattarget, -1)::text, '')
       || coalesce((SELECT ' ' || pg_catalog.string_agg(option, ' ' ORDER BY option)
                      FROM pg_catalog.unnest(a.attoptions) AS option
                     WHERE option LIKE 'n\_distinct%%'), '') AS line
  FROM pg_catalog.pg_attribute AS a
  LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = %(oid)s::oid AND a.attnum > 0 AND NOT a.attisdropped
 UNION ALL
SELECT c.conname || ' ' || pg_catalog.pg_get_constraintdef(c.oid)
  FROM pg_catalog.pg_constraint AS c
 WHERE c.conrelid = %(oid)s::oid AND c.contype = 'c'
 UNION ALL
SELECT c.relpersistence::text || ' ' || c.relam::text || ' ' || c.reltablespace::text
       || ' ' || coalesce(c.reloptions::text, '') || ' ' || coalesce(toast.reloptions::text, '')
  FROM pg_catalog.pg_class AS c
  LEFT JOIN pg_catalog.pg_class AS toast ON toast.oid = c.reltoastrelid
 WHERE c.oid = %(oid)s::oid
 ORDER BY 1;

-- name: hide
-- Statements that take from everybody but the owner what they were granted on the load's tables, and on the sequences
-- of its identity columns. Row security as of the destination is for those who need no grant, such as members of
-- pg_read_all_data: without a policy they see no row.
SELECT pg_catalog.format('REVOKE ALL ON %%s %%I.%%I FROM %%s',
                         CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname,
                         pg_catalog.string_agg(DISTINCT coalesce(pg_catalog.quote_ident(role.rolname), 'PUBLIC'), ', '))
       AS statement
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS entry
  LEFT JOIN pg_catalog.pg_roles AS role ON role.oid = entry.grantee
 WHERE c.relkind IN ('r', 'S') AND entry.grantee <> c.relowner
   AND (c.oid = ANY (%(oids)s::oid[])
        OR c.oid IN (SELECT d.objid
                       FROM pg_catalog.pg_depend AS d
                      WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                        AND d.refobjid = ANY (%(oids)s::oid[]) AND d.deptype = 'i'))
 GROUP BY c.oid, c.relkind, n.nspname, c.relname
 UNION ALL
SELECT pg_catalog.format('ALTER TABLE %%I.%%I ENABLE ROW LEVEL SECURITY', n.nspname, c.relname)
  FROM pg_catalog.pg_class AS old
 CROSS JOIN pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE old.oid = %(old)s::oid AND old.relrowsecurity AND c.oid = %(shadow)s::oid;

-- name: index_names
SELECT c.relname AS name
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
 WHERE i.indrelid = %(oid)s::oid;
