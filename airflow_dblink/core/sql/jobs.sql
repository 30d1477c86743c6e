-- name: installation
-- What is there of the schema, whether this role may use it, and whether whoever owns it
-- could make this role run his code: only this role itself, superusers, the database's owner
-- and roles that this one is a member of are trusted.
SELECT n.oid IS NOT NULL AS has_schema,
       pg_catalog.obj_description(n.oid, 'pg_namespace') AS comment,
       t.oid IS NOT NULL AND p.oid IS NOT NULL AS is_complete,
       coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE')
            AND pg_catalog.has_table_privilege(t.oid, 'SELECT')
            AND pg_catalog.has_table_privilege(t.oid, 'INSERT')
            AND pg_catalog.has_table_privilege(t.oid, 'UPDATE')
            AND pg_catalog.has_table_privilege(t.oid, 'DELETE')
            AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE'), false) AS may_send,
       coalesce(pg_catalog.has_schema_privilege(n.oid, 'CREATE'), false) AS may_keep_results,
       coalesce(pg_catalog.pg_has_role(n.nspowner, 'USAGE'), false) AS may_upgrade,
       pg_catalog.has_database_privilege(d.oid, 'CREATE') AS may_create,
       (SELECT pg_catalog.min(r.rolname::text)
          FROM pg_catalog.pg_roles AS r
         WHERE r.oid IN (n.nspowner, t.relowner, p.proowner)
           AND NOT (r.rolsuper OR r.oid = d.datdba OR r.rolname = 'pg_database_owner'
                    OR pg_catalog.pg_has_role(r.oid, 'USAGE'))) AS distrusted_owner,
       CURRENT_USER::text AS role,
       d.datname::text AS database,
       d.oid::text AS database_oid,
       (SELECT c.system_identifier::text FROM pg_catalog.pg_control_system() AS c) AS system_identifier,
       pg_catalog.pg_is_in_recovery() AS is_standby
  FROM pg_catalog.pg_database AS d
  LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = %(schema)s
  LEFT JOIN pg_catalog.pg_class AS t ON t.relnamespace = n.oid AND t.relname = 'job' AND t.relkind = 'r'
  LEFT JOIN pg_catalog.pg_proc AS p
         ON p.pronamespace = n.oid AND p.proname = 'run' AND p.prokind = 'p'
        AND p.proargtypes = '2950'::oidvector -- uuid
 WHERE d.datname = pg_catalog.current_database();

-- name: insert
-- Sent a second time, by a retry or by a worker that was thought dead, it does nothing.
INSERT INTO {schema}.job (id, dag_id, task_id, run_id, map_index, try_number, replaces, statement,
                          bound_statement, is_query, keep_result, command, settings, statement_timeout)
VALUES (%(id)s, %(dag_id)s, %(task_id)s, %(run_id)s, %(map_index)s, %(try_number)s, %(replaces)s, %(statement)s,
        %(bound_statement)s, %(is_query)s, %(keep_result)s, %(command)s, %(settings)s, %(statement_timeout)s)
ON CONFLICT (id) DO NOTHING;

-- name: its_session
-- The session that runs job j. A pooler's goes on with something else when the job has ended.
pg_stat_activity AS a
 WHERE a.pid = j.pid
   AND (a.backend_start = j.backend_start OR j.backend_start IS NULL
        -- Hidden: another role's. The owner's own aren't hidden from the owner.
        OR (a.backend_start IS NULL AND j.owner <> CURRENT_USER))
   AND (a.state IS NULL OR a.state = 'disabled' OR (a.state = 'active' AND strpos(a.query, j.id::text) > 0));

-- name: give_up_lost
-- A job whose session is gone has committed nothing, and after this it can't any more. A session that
-- may be the job's, but that this role may not look at, counts as alive. Should the job end at this very
-- moment, it is no longer 'running' when this gets the row's lock.
UPDATE {schema}.job AS j
   SET state = CASE WHEN j.cancel_requested_at IS NULL THEN 'lost' ELSE 'cancelled' END,
       ended_at = clock_timestamp(),
       bound_statement = NULL
 WHERE j.id = ANY (%(ids)s) AND j.state = 'running'
   AND NOT EXISTS (SELECT FROM {its_session});

-- name: look
SELECT {columns}
  FROM {schema}.job AS j
 WHERE j.id = ANY (%(ids)s);

-- name: see
-- For who may change nothing: as give_up_lost and look.
SELECT {columns},
       j.state = 'running' AND NOT EXISTS (SELECT FROM {its_session}) AS is_lost
  FROM {schema}.job AS j
 WHERE j.id = %(id)s;

-- name: columns
-- All of a job but its statement.
j.id, j.state, j.owner::text AS owner, j.dag_id, j.task_id, j.run_id, j.map_index, j.try_number, j.replaces,
j.is_query, j.keep_result, j.command, j.statement_timeout, j.sent_at, j.started_at, j.ended_at,
j.cancel_requested_at, j.pid, j.row_count, j.result_table::text AS result_table,
j.sqlstate, j.message, j.detail, j.hint, j.context,
extract(epoch FROM clock_timestamp() - j.sent_at)::float8 AS age_s;

-- name: statement
SELECT left(j.statement, %(most)s) AS statement FROM {schema}.job AS j WHERE j.id = %(id)s;

-- name: list
SELECT {columns}
  FROM {schema}.job AS j
 WHERE (%(states)s IS NULL OR j.state = ANY (%(states)s))
   AND (%(dag_id)s IS NULL OR j.dag_id = %(dag_id)s)
 ORDER BY j.sent_at DESC, j.id
 LIMIT %(most)s;

-- name: request_cancel
-- What has not begun is cancelled by this alone; what runs is marked, so that its end is told
-- from a time-out's.
UPDATE {schema}.job AS j
   SET state = CASE j.state WHEN 'sent' THEN 'cancelled' ELSE j.state END,
       cancel_requested_at = coalesce(j.cancel_requested_at, clock_timestamp()),
       ended_at = CASE j.state WHEN 'sent' THEN clock_timestamp() END,
       bound_statement = CASE j.state WHEN 'sent' THEN NULL ELSE j.bound_statement END
 WHERE j.id = %(id)s AND j.state IN ('sent', 'running');

-- name: cancel
SELECT pg_cancel_backend(j.pid)
  FROM {schema}.job AS j
 WHERE j.id = %(id)s AND j.state = 'running' AND EXISTS (SELECT FROM {its_session} AND a.backend_start IS NOT NULL);

-- name: terminate
-- A statement may catch the cancellation, or wait for something that nothing interrupts.
SELECT pg_terminate_backend(j.pid)
  FROM {schema}.job AS j
 WHERE j.id = %(id)s AND j.state = 'running' AND EXISTS (SELECT FROM {its_session} AND a.backend_start IS NOT NULL);

-- name: notify
-- Not where the queue is full: what is said in the same transaction would then fail with it.
SELECT pg_notify('airflow_dblink_job', %(id)s::text) WHERE pg_notification_queue_usage() < 0.9;

-- name: running_since
-- Those that nobody has asked for since their session ended still say so.
SELECT j.id
  FROM {schema}.job AS j
 WHERE j.state = 'running' AND j.started_at < clock_timestamp() - %(older_than)s::interval;

-- name: prunable
-- A few at a time: each goes in a transaction of its own, with its result. What was sent so long
-- ago and never begun has lost its sender.
SELECT j.id, j.result_table::text AS result_table
  FROM {schema}.job AS j
 WHERE coalesce(j.ended_at, j.sent_at) < clock_timestamp() - %(older_than)s::interval AND j.state <> 'running'
 ORDER BY j.sent_at
 LIMIT %(most)s;

-- name: delete
DELETE FROM {schema}.job AS j WHERE j.id = %(id)s AND j.state <> 'running';

-- name: drop_result
DROP TABLE IF EXISTS {schema}.{result_table};

-- name: forget_result
UPDATE {schema}.job AS j SET result_table = NULL WHERE j.id = %(id)s;
