-- name: is_trusted
-- Whether role r is trusted: its objects may run code as this role. That holds for roles that can act as this role
-- already, and for superusers and the database's owner. It doesn't hold for a role of which this one is a member:
-- its other members could change its objects, too. From 16 on, membership alone doesn't allow SET ROLE.
coalesce(r.rolsuper
      OR r.rolname = 'pg_database_owner'
      OR r.oid = (SELECT d.datdba FROM pg_database AS d WHERE d.datname = current_database())
      OR pg_has_role(r.oid, CURRENT_USER, 'USAGE')
      OR pg_has_role(r.oid, CURRENT_USER,
                     CASE WHEN current_setting('server_version_num')::int4 >= 160000 THEN 'SET' ELSE 'MEMBER' END)
      OR r.rolname::text = ANY ({trusted_owners}::text[]), false);

-- name: distrusted
-- The first object by which a role that isn't trusted could run code as this one, as JSON: kind, name, role, and
-- place in the list below; NULL if there is none. It needs pg_catalog as search_path.
WITH space AS (
    SELECT n.oid, n.nspname, n.nspowner FROM pg_namespace AS n WHERE n.nspname = {schema_name}
), ours AS (
    SELECT c.oid, c.relname, c.relowner, c.relacl, c.relkind
      FROM pg_class AS c JOIN space AS n ON n.oid = c.relnamespace WHERE c.relname = {relname}
), part (classid, objid) AS (
    SELECT 'pg_class'::regclass::oid, j.oid FROM ours AS j
    UNION ALL SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index AS i JOIN ours AS j ON j.oid = i.indrelid
    UNION ALL SELECT 'pg_attrdef'::regclass, a.oid FROM pg_attrdef AS a JOIN ours AS j ON j.oid = a.adrelid
    UNION ALL SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint AS c JOIN ours AS j ON j.oid = c.conrelid
    UNION ALL SELECT 'pg_policy'::regclass, p.oid FROM pg_policy AS p JOIN ours AS j ON j.oid = p.polrelid
    UNION ALL SELECT 'pg_rewrite'::regclass, w.oid FROM pg_rewrite AS w JOIN ours AS j ON j.oid = w.ev_class
    UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger AS t JOIN ours AS j ON j.oid = t.tgrelid
), used AS ( -- built-in objects aren't in pg_depend
    SELECT DISTINCT d.refclassid, d.refobjid
      FROM part AS p JOIN pg_depend AS d ON d.classid = p.classid AND d.objid = p.objid
), finding (place, kind, name, owner) AS (
    SELECT 1, 'schema', n.nspname::text, n.nspowner
      FROM pg_namespace AS n WHERE n.nspname = ANY ({schema_names}::name[])
    UNION ALL SELECT 2, 'relation', j.relname::text, j.relowner FROM ours AS j
    UNION ALL SELECT 3, 'not a table', j.relname::text, NULL FROM ours AS j WHERE j.relkind <> 'r'
    -- All functions of the schema, since a call finds the best match by arguments and defaults.
    UNION ALL SELECT 4, 'function', p.oid::regprocedure::text, p.proowner
      FROM pg_proc AS p JOIN space AS n ON n.oid = p.pronamespace
    UNION ALL SELECT 5, 'function', p.oid::regprocedure::text, p.proowner
      FROM used AS u JOIN pg_proc AS p ON p.oid = u.refobjid WHERE u.refclassid = 'pg_proc'::regclass
    UNION ALL SELECT 5, 'operator', o.oid::regoperator::text, o.oprowner
      FROM used AS u JOIN pg_operator AS o ON o.oid = u.refobjid WHERE u.refclassid = 'pg_operator'::regclass
    UNION ALL SELECT 5, 'type', t.oid::regtype::text, t.typowner
      FROM used AS u JOIN pg_type AS t ON t.oid = u.refobjid WHERE u.refclassid = 'pg_type'::regclass
    UNION ALL SELECT 5, 'operator class', o.opcname::text, o.opcowner
      FROM used AS u JOIN pg_opclass AS o ON o.oid = u.refobjid WHERE u.refclassid = 'pg_opclass'::regclass
    UNION ALL SELECT 5, 'relation', c.oid::regclass::text, c.relowner
      FROM used AS u JOIN pg_class AS c ON c.oid = u.refobjid WHERE u.refclassid = 'pg_class'::regclass
    -- A trigger has no known owner, and its condition may call a built-in function that runs any SQL: query_to_xml.
    -- Immutable functions don't.
    UNION ALL SELECT 6, 'condition', t.tgname::text, NULL
      FROM pg_trigger AS t JOIN ours AS j ON j.oid = t.tgrelid
     WHERE EXISTS (SELECT FROM regexp_matches(t.tgqual::text, ':(?:op)?funcid ([0-9]+)', 'g') AS called (ids)
                     JOIN pg_proc AS p ON p.oid = called.ids[1]::oid WHERE p.provolatile <> 'i')
    -- A role with the right TRIGGER can create a trigger at any time. A foreign key's cascade runs as the owner of
    -- its table; but before 18, triggers that it defers to the commit run as this role.
    UNION ALL SELECT 7, a.privilege_type, j.relname::text, a.grantee
      FROM ours AS j CROSS JOIN LATERAL aclexplode(j.relacl) AS a
     WHERE a.privilege_type IN ('TRIGGER', 'REFERENCES')
    UNION ALL SELECT 7, a.privilege_type, j.relname::text, a.grantee
      FROM ours AS j JOIN pg_attribute AS c ON c.attrelid = j.oid CROSS JOIN LATERAL aclexplode(c.attacl) AS a
     WHERE a.privilege_type = 'REFERENCES'
    UNION ALL SELECT 8, 'table', c.oid::regclass::text, c.relowner
      FROM pg_constraint AS f JOIN ours AS j ON j.oid = f.confrelid JOIN pg_class AS c ON c.oid = f.conrelid
    -- A change of the table also changes rows of its children, and fires their triggers.
    UNION ALL SELECT 9, 'child', i.inhrelid::regclass::text, NULL
      FROM pg_inherits AS i JOIN ours AS j ON j.oid = i.inhparent
)
SELECT json_build_object('kind', f.kind, 'name', f.name, 'place', f.place, 'me', CURRENT_USER,
                         'role', CASE f.owner WHEN 0 THEN 'PUBLIC' ELSE r.rolname::text END)
  FROM finding AS f LEFT JOIN pg_roles AS r ON r.oid = f.owner
 WHERE NOT {is_trusted}
 ORDER BY f.place, f.name
 LIMIT 1;

-- name: guard
-- Fails, and so aborts its transaction, unless all objects are trusted. Its lock then prevents that anybody drops or
-- replaces the table, or adds an object to it. It looks once before the lock, so that it doesn't wait for the lock
-- of a stranger.
DECLARE
    found_distrusted pg_catalog.text; -- qualified: in guarded_call it is looked up before search_path is set
BEGIN
    FOR look IN 1..2 LOOP
        found_distrusted := ({distrusted});
        IF found_distrusted IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = {sqlstate},
                MESSAGE = format('airflow-dblink: a part of the schema for %s belongs to somebody who is not trusted', {purpose}),
                DETAIL = found_distrusted;
        END IF;
        IF to_regclass({table_name}) IS NULL THEN -- a stranger could create it before the next statement
            RAISE EXCEPTION USING ERRCODE = 'undefined_table',
                MESSAGE = format('relation "%s.%s" does not exist', {schema_name}, {relname});
        END IF;
        IF look = 1 THEN
            LOCK TABLE {table} IN ROW EXCLUSIVE MODE;
        END IF;
    END LOOP;
END;
