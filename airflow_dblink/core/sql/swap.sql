-- name: owner
-- Whether the role may make a table in place of another: it acts as the owner, and gives the new one to the owner. For
-- the latter, it must be able to become the owner (SET, before 16 MEMBER), who must be allowed to create there.
SELECT owner.rolname AS owner,
       c.relpersistence = 't' AS is_temporary,
       c.relispartition AS is_partition,
       pg_catalog.pg_has_role(c.relowner, 'USAGE')
           AND pg_catalog.pg_has_role(c.relowner, CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000
                                                       THEN 'SET' ELSE 'MEMBER' END) AS may_act,
       pg_catalog.has_schema_privilege(c.relnamespace, 'CREATE') AS may_create,
       pg_catalog.has_schema_privilege(c.relowner, c.relnamespace, 'CREATE') AS owner_may_create
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_roles AS owner ON owner.oid = c.relowner
 WHERE c.oid = %(oid)s;

-- name: obstacles
-- What a table of the same name can't have, or what would go on using the old one. "own" is what the table consists
-- of, with the triggers of its foreign keys on other tables; "owned" are sequences that outlive it. An object that
-- depends on any of it and isn't part of it is an obstacle, but for foreign keys of tables in "together", which are
-- swapped with it. Triggers: type 4 is INSERT. Through pg_publication_tables
-- since it knows all tables and schemas that are published.
WITH own (classid, objid, is_asked) AS (
    SELECT 'pg_catalog.pg_class'::regclass::oid, c.oid, true FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_class'::regclass, c.reltoastrelid, false
      FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_class'::regclass, i.indexrelid, true
      FROM pg_catalog.pg_index AS i WHERE i.indrelid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_class'::regclass, d.objid, d.deptype = 'i'
      FROM pg_catalog.pg_depend AS d
      JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
     WHERE d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.refobjid = %(oid)s AND d.deptype IN ('a', 'i')
       AND d.refclassid = 'pg_catalog.pg_class'::regclass::oid
     UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass, t.oid, true
      FROM pg_catalog.pg_type AS t
     WHERE t.typrelid = %(oid)s
        OR t.oid = (SELECT row.typarray FROM pg_catalog.pg_type AS row WHERE row.typrelid = %(oid)s)
     UNION ALL
    SELECT 'pg_catalog.pg_attrdef'::regclass, d.oid, true FROM pg_catalog.pg_attrdef AS d WHERE d.adrelid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_constraint'::regclass, c.oid, true
      FROM pg_catalog.pg_constraint AS c WHERE c.conrelid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_trigger'::regclass, t.oid, true FROM pg_catalog.pg_trigger AS t
     WHERE t.tgrelid = %(oid)s
        OR t.tgconstraint IN (SELECT c.oid FROM pg_catalog.pg_constraint AS c WHERE c.conrelid = %(oid)s)
     UNION ALL
    SELECT 'pg_catalog.pg_policy'::regclass, p.oid, true FROM pg_catalog.pg_policy AS p WHERE p.polrelid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_statistic_ext'::regclass, s.oid, true
      FROM pg_catalog.pg_statistic_ext AS s WHERE s.stxrelid = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_rewrite'::regclass, r.oid, false FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = %(oid)s
     UNION ALL
    SELECT 'pg_catalog.pg_publication_rel'::regclass, p.oid, false
      FROM pg_catalog.pg_publication_rel AS p WHERE p.prrelid = %(oid)s
), outside AS (
    SELECT DISTINCT d.classid, d.objid, d.objsubid
      FROM pg_catalog.pg_depend AS d
      JOIN own ON own.classid = d.refclassid AND own.objid = d.refobjid AND own.is_asked
     WHERE NOT EXISTS (SELECT FROM own AS part WHERE part.classid = d.classid AND part.objid = d.objid)
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS key
                        WHERE d.classid = 'pg_catalog.pg_constraint'::regclass::oid AND key.oid = d.objid
                          AND key.contype = 'f' AND key.conrelid = ANY (%(together)s::oid[]))
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS i
                        WHERE i.inhparent = %(oid)s AND d.classid = 'pg_catalog.pg_class'::regclass::oid
                          AND i.inhrelid = d.objid)
), found (kind, name) AS (
    SELECT 'outside', coalesce(
               (SELECT pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass::oid, r.ev_class, 0)
                  FROM pg_catalog.pg_rewrite AS r
                 WHERE outside.classid = 'pg_catalog.pg_rewrite'::regclass::oid AND r.oid = outside.objid),
               pg_catalog.pg_describe_object(outside.classid, outside.objid, outside.objsubid))
      FROM outside
     UNION
    SELECT 'rule', r.rulename FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = %(oid)s
     UNION
    SELECT 'publication', p.pubname
      FROM pg_catalog.pg_publication_tables AS p
      JOIN pg_catalog.pg_namespace AS n ON n.nspname = p.schemaname
      JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename
     WHERE c.oid = %(oid)s
     UNION
    SELECT 'subscription', s.subname
      FROM pg_catalog.pg_subscription_rel AS r
      JOIN pg_catalog.pg_subscription AS s ON s.oid = r.srsubid
     WHERE r.srrelid = %(oid)s
     UNION
    SELECT 'parent', i.inhparent::pg_catalog.regclass::text FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = %(oid)s
     UNION
    SELECT 'child', i.inhrelid::pg_catalog.regclass::text FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = %(oid)s
     UNION
    SELECT 'trigger', t.tgname
      FROM pg_catalog.pg_trigger AS t
     WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype::int & 4 = 4
     UNION
    SELECT 'function', t.tgname
      FROM pg_catalog.pg_trigger AS t
     WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal
       AND NOT pg_catalog.has_function_privilege(t.tgfoid, 'EXECUTE')
     UNION
    SELECT 'changed', c.conname
      FROM pg_catalog.pg_trigger AS t
      JOIN pg_catalog.pg_constraint AS c ON c.oid = t.tgconstraint
     WHERE t.tgrelid = %(oid)s AND t.tgisinternal AND t.tgenabled <> 'O'
     UNION
    SELECT 'label', label.provider
      FROM pg_catalog.pg_seclabel AS label
      JOIN own ON own.classid = label.classoid AND own.objid = label.objoid
     UNION
    SELECT 'extension', e.extname
      FROM pg_catalog.pg_depend AS d
      JOIN own ON own.classid = d.classid AND own.objid = d.objid
      JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
     WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass::oid AND d.deptype IN ('e', 'x')
     UNION
    SELECT 'invalid', i.indexrelid::pg_catalog.regclass::text
      FROM pg_catalog.pg_index AS i WHERE i.indrelid = %(oid)s AND NOT i.indisvalid
     UNION
    SELECT 'type', pg_catalog.format_type(c.reloftype, NULL)
      FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s AND c.reloftype <> 0::oid
)
SELECT kind, name FROM found ORDER BY kind, name;

-- name: holders
-- Whose locks keep tables, those that they refer to, or their sequences from being locked; no query's text. Or, of "writers"
-- alone, whose keep others out that only refer to a table. A prepared transaction has no session.
SELECT lock.pid, activity.application_name, activity.state,
       (extract(epoch FROM pg_catalog.clock_timestamp() - activity.xact_start))::int AS seconds,
       min(lock.relation::pg_catalog.regclass::text) AS relation
  FROM pg_catalog.pg_locks AS lock
  LEFT JOIN pg_catalog.pg_stat_activity AS activity ON activity.pid = lock.pid
 WHERE lock.locktype = 'relation' AND lock.granted
   AND lock.database = (SELECT d.oid FROM pg_catalog.pg_database AS d
                         WHERE d.datname = pg_catalog.current_database())
   AND (lock.relation IN (
            SELECT c.confrelid FROM pg_catalog.pg_constraint AS c
             WHERE c.conrelid = ANY (%(oids)s::oid[]) AND c.contype = 'f')
        OR NOT %(writers)s AND (lock.relation = ANY (%(oids)s::oid[]) OR lock.relation IN (
            SELECT d.objid FROM pg_catalog.pg_depend AS d
             WHERE d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.refobjid = ANY (%(oids)s::oid[])
               AND d.refclassid = 'pg_catalog.pg_class'::regclass::oid AND d.deptype IN ('a', 'i'))))
   AND (NOT %(writers)s OR lock.mode NOT IN ('AccessShareLock', 'RowShareLock'))
   AND lock.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
 GROUP BY lock.pid, activity.application_name, activity.state, activity.xact_start
 ORDER BY seconds DESC NULLS FIRST
 LIMIT 5;

-- name: have_all
-- The body of a DO block: runs the statements, and waits for the locks of all of them no longer than {ms} together.
DECLARE
    ends CONSTANT timestamptz := clock_timestamp() + {ms} * interval '1 ms';
    statement text;
BEGIN
    FOREACH statement IN ARRAY ARRAY[{texts}]::text[] LOOP
        PERFORM set_config(
            'lock_timeout', greatest(1, ceil(1000 * extract(epoch FROM ends - clock_timestamp())))::int || 'ms', true);
        EXECUTE statement;
    END LOOP;
END

-- name: snapshots
-- Transactions of other sessions in this database that hold a snapshot. Every role sees that of all sessions
-- (backend_xmin), unlike their state. A transaction of READ COMMITTED holds one only while a statement runs. Sessions
-- of nobody are not a user's.
SELECT l.virtualtransaction AS transaction, a.pid, a.application_name, a.state,
       (extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start))::int AS seconds
  FROM pg_catalog.pg_locks AS l
  JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock'
   AND l.pid <> pg_catalog.pg_backend_pid() AND a.usesysid IS NOT NULL
   AND a.datname = pg_catalog.current_database() AND a.backend_xmin IS NOT NULL
 ORDER BY a.xact_start, a.pid;

-- name: settings
SELECT pg_catalog.current_setting('lock_timeout') AS lock_timeout,
       (SELECT s.setting::int FROM pg_catalog.pg_settings AS s WHERE s.name = 'deadlock_timeout') AS deadlock_ms;
