-- name: installation
-- The parts of the job schema that exist, this role's privileges on them, and an object that isn't trusted.
SELECT n.oid IS NOT NULL AS has_schema,
       obj_description(n.oid, 'pg_namespace') AS comment,
       t.oid IS NOT NULL AND p.oid IS NOT NULL AS is_complete,
       rn.oid IS NOT NULL AS has_results,
       coalesce(has_schema_privilege(n.oid, 'USAGE')
            AND has_table_privilege(t.oid, 'SELECT')
            AND has_table_privilege(t.oid, 'INSERT')
            AND has_table_privilege(t.oid, 'UPDATE')
            AND has_table_privilege(t.oid, 'DELETE')
            AND has_function_privilege(p.oid, 'EXECUTE'), false) AS may_send,
       coalesce(has_schema_privilege(rn.oid, 'USAGE')
            AND has_schema_privilege(rn.oid, 'CREATE'), false) AS may_keep_results,
       coalesce(pg_has_role(n.nspowner, 'USAGE')
            AND CASE WHEN rn.oid IS NULL THEN has_database_privilege(d.oid, 'CREATE')
                     ELSE pg_has_role(rn.nspowner, 'USAGE') END, false) AS may_upgrade,
       has_database_privilege(d.oid, 'CREATE') AS may_create,
       ({distrusted}) AS distrusted,
       CURRENT_USER::text AS role,
       d.datname::text AS database,
       d.oid::text AS database_oid,
       (SELECT c.system_identifier::text FROM pg_control_system() AS c) AS system_identifier,
       pg_is_in_recovery() AS is_standby
  FROM pg_database AS d
  LEFT JOIN pg_namespace AS n ON n.nspname = {schema_name}
  LEFT JOIN pg_namespace AS rn ON rn.nspname = {results_name}
  LEFT JOIN pg_class AS t ON t.relnamespace = n.oid AND t.relname = 'job' AND t.relkind = 'r'
  LEFT JOIN pg_proc AS p
         ON p.pronamespace = n.oid AND p.proname = 'run' AND p.prokind = 'p'
        AND p.proargtypes = '2950'::oidvector -- uuid
 WHERE d.datname = current_database();

-- name: insert
-- A retry, or a worker that was thought dead, may send this twice; the second time it does nothing.
INSERT INTO {schema}.job (id, dag_id, task_id, run_id, map_index, try_number, replaces, statement,
                          bound_statement, is_query, keep_result, command, settings, statement_timeout)
VALUES (%(id)s, %(dag_id)s, %(task_id)s, %(run_id)s, %(map_index)s, %(try_number)s, %(replaces)s, %(statement)s,
        %(bound_statement)s, %(is_query)s, %(keep_result)s, %(command)s, %(settings)s, %(statement_timeout)s)
ON CONFLICT (id) DO NOTHING;

-- name: its_session
-- The session that runs job j. A pooler's session may run another statement once the job has ended.
pg_stat_activity AS a
 WHERE a.pid = j.pid
   AND (a.backend_start = j.backend_start OR j.backend_start IS NULL
        -- Hidden, as the sessions of other roles are; the job's owner sees its own.
        OR (a.backend_start IS NULL AND j.owner <> CURRENT_USER))
   AND (a.state IS NULL OR a.state = 'disabled' OR (a.state = 'active' AND strpos(a.query, j.id::text) > 0));

-- name: give_up_lost
-- A job whose session is gone has committed nothing, and after this it can't any more. A session that may be the
-- job's, but is hidden from this role, counts as alive. If the job ends at this very moment, it is no longer
-- 'running' when this statement gets the row's lock.
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
-- The result of give_up_lost and look, for a reader who may change nothing.
SELECT {columns},
       j.state = 'running' AND NOT EXISTS (SELECT FROM {its_session}) AS is_lost
  FROM {schema}.job AS j
 WHERE j.id = %(id)s;

-- name: result_place
-- The schema of the table with job j's rows. Before version 2 it was the job table's.
(SELECT n.nspname::text
   FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_roles AS r ON r.oid = c.relowner
  WHERE c.relname = j.result_table AND c.relkind = 'r' AND n.nspname IN ({results_name}, {schema_name})
    AND {is_trusted}
  ORDER BY n.nspname = {results_name} DESC
  LIMIT 1);

-- name: columns
-- All columns of a job except its statement.
j.id, j.state, j.owner::text AS owner, j.dag_id, j.task_id, j.run_id, j.map_index, j.try_number, j.replaces,
j.is_query, j.keep_result, j.command, j.statement_timeout, j.sent_at, j.started_at, j.ended_at,
j.cancel_requested_at, j.pid, j.row_count, j.result_table::text AS result_table,
{result_place} AS result_schema,
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
-- This cancels a job that has not begun. It only marks a running job, so that its end is distinguished from a
-- time-out.
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
-- For a statement that catches the cancellation, or is in a wait that nothing interrupts.
SELECT pg_terminate_backend(j.pid)
  FROM {schema}.job AS j
 WHERE j.id = %(id)s AND j.state = 'running' AND EXISTS (SELECT FROM {its_session} AND a.backend_start IS NOT NULL);

-- name: notify
-- Not if the queue is nearly full: a failed NOTIFY would undo the other statements of the transaction.
SELECT pg_notify('airflow_dblink_job', %(id)s::text) WHERE pg_notification_queue_usage() < 0.9;

-- name: running_since
-- Jobs that are 'running' by their row. Their session may have ended, if nobody has read the row since.
SELECT j.id
  FROM {schema}.job AS j
 WHERE j.state = 'running' AND j.started_at < clock_timestamp() - %(older_than)s::interval;

-- name: prunable
-- A few at a time: each job is deleted in a transaction of its own, with its result. A job that was sent that long
-- ago and never began has lost its sender. The result is listed whoever owns it: DROP checks the privilege.
SELECT j.id, j.result_table::text AS result_table,
       ARRAY(SELECT n.nspname::text
               FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
              WHERE c.relname = j.result_table AND c.relkind = 'r'
                AND n.nspname IN ({results_name}, {schema_name})) AS result_schemas
  FROM {schema}.job AS j
 WHERE coalesce(j.ended_at, j.sent_at) < clock_timestamp() - %(older_than)s::interval AND j.state <> 'running'
   AND j.id <> ALL (%(left)s::uuid[])
 ORDER BY j.sent_at
 LIMIT %(most)s;

-- name: delete
DELETE FROM {schema}.job AS j WHERE j.id = %(id)s AND j.state <> 'running' RETURNING j.id;

-- name: drop_result
DROP TABLE IF EXISTS {tables};

-- name: forget_result
UPDATE {schema}.job AS j SET result_table = NULL WHERE j.id = %(id)s;

-- name: lock_result
-- While it is read, nobody can drop the table and create another one with its name.
LOCK TABLE {result_schema}.{result_table} IN ACCESS SHARE MODE;

-- name: result_is_trusted
-- In the same transaction as lock_result. Before the lock, somebody may have put another table in its place.
SELECT {is_trusted} AND c.relkind = 'r' AS is_trusted
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_roles AS r ON r.oid = c.relowner
 WHERE n.nspname = %(result_schema)s AND c.relname = %(result_table)s;
