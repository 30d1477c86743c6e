-- name: install
-- Installs the objects of remote jobs in a database: a schema with one table and one procedure, and a second schema
-- for the results that jobs keep. If it is run again, it upgrades them and keeps all jobs. The schema's comment has
-- the version.
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '10s';
SET LOCAL search_path = pg_catalog, pg_temp;
-- Two tasks may install it at the same moment.
SELECT pg_catalog.pg_advisory_xact_lock(7081424351162117427);

-- An older client must not undo the upgrade of a newer one.
DO $newer$
BEGIN
    IF (SELECT substring(obj_description(n.oid, 'pg_namespace') FROM '^airflow-dblink jobs, version (\d+)$')::int
          FROM pg_namespace AS n WHERE n.nspname = {schema_name}) > {version} THEN
        RAISE EXCEPTION 'a newer version of this schema is installed' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$newer$;

CREATE SCHEMA IF NOT EXISTS {schema};

-- Results have a schema of their own: roles that keep results need CREATE there, and in the job schema they could
-- create a second procedure beside ours.
DO $results$
DECLARE
    owner oid := (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = {schema_name});
    there record;
    role text;
BEGIN
    SELECT n.nspowner, obj_description(n.oid, 'pg_namespace') AS comment INTO there
      FROM pg_namespace AS n WHERE n.nspname = {results_name};
    IF NOT FOUND THEN
        EXECUTE format('CREATE SCHEMA %I AUTHORIZATION %I', {results_name}, pg_get_userbyid(owner));
    ELSIF there.nspowner <> owner OR there.comment IS DISTINCT FROM {results_comment} THEN
        RAISE EXCEPTION 'schema % is in the way: results of jobs are to be kept in one of that name', {results_name}
              USING ERRCODE = 'duplicate_schema', HINT = 'rename it, or use another schema for jobs (job_schema)';
    END IF;
    EXECUTE format('COMMENT ON SCHEMA %I IS %L', {results_name}, {results_comment});
    -- Version 1 kept results beside the job table. These stay there, and can be read.
    FOR role IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
          FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
         WHERE n.nspname = {schema_name} AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
    LOOP
        EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO %s', {results_name}, role);
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM %s CASCADE', {schema_name}, role);
    END LOOP;
END
$results$;

CREATE TABLE IF NOT EXISTS {schema}.job (
    id uuid PRIMARY KEY,
    state text NOT NULL DEFAULT 'sent'
        CHECK (state IN ('sent', 'running', 'succeeded', 'failed', 'cancelled', 'lost')),
    -- The role that sent the job. Only this role, superusers and the table's owner see the row.
    owner name NOT NULL DEFAULT CURRENT_USER,
    -- The task that sent it, and the job of an earlier try that it replaces.
    dag_id text,
    task_id text,
    run_id text,
    map_index integer,
    try_number integer,
    replaces uuid,
    -- The statement as the user wrote it. bound_statement has its parameters' values, and is kept only until the
    -- job has ended.
    statement text NOT NULL,
    bound_statement text,
    -- One query, whose rows are kept in result_table, or else discarded one by one.
    is_query boolean NOT NULL DEFAULT false,
    keep_result boolean NOT NULL DEFAULT false,
    -- The command tag without its row count, if it has one: 'INSERT 0', 'UPDATE', ...
    command text,
    settings jsonb NOT NULL DEFAULT '{{}}',
    -- The caller of run sets this limit, since it counts from the call.
    statement_timeout text,
    sent_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    started_at timestamptz,
    ended_at timestamptz,
    cancel_requested_at timestamptz,
    -- The session that runs it. A pid alone isn't enough, since it may be reused.
    pid integer,
    backend_start timestamptz,
    row_count bigint,
    -- No other name is allowed, since a role that prunes jobs drops this table with its own privileges.
    result_table name CHECK (result_table = 'result_' || replace(id::text, '-', '')),
    sqlstate text,
    message text,
    detail text,
    hint text,
    context text
);
CREATE INDEX IF NOT EXISTS job_task ON {schema}.job (dag_id, run_id, task_id);
CREATE INDEX IF NOT EXISTS job_ended_at ON {schema}.job (ended_at);
ALTER TABLE {schema}.job ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS owner_only ON {schema}.job;
CREATE POLICY owner_only ON {schema}.job USING (owner = CURRENT_USER) WITH CHECK (owner = CURRENT_USER);

-- Runs one job, once, in three transactions; the second one is the job's own. A procedure that commits can be
-- neither SECURITY DEFINER nor have a SET clause for search_path. So this one sets the path itself, and before that
-- uses no unqualified name and no operator. Its settings are local to a transaction, so that none stays in the
-- session of a pooler.
CREATE OR REPLACE PROCEDURE {schema}.run(job_id uuid) LANGUAGE plpgsql AS {quote}
DECLARE
    own_role pg_catalog.text;
    job_table pg_catalog.oid;
    job pg_catalog.record;
    to_run pg_catalog.text;
    discarded pg_catalog.refcursor := 'airflow_dblink_discarded';
    rows pg_catalog.int8;
    failed pg_catalog.bool := false;
    error_sqlstate pg_catalog.text;
    error_message pg_catalog.text;
    error_detail pg_catalog.text;
    error_hint pg_catalog.text;
    error_context pg_catalog.text;
BEGIN
    COMMIT;
    -- Under a stricter default of the role, it would not see a cancellation that came meanwhile.
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    own_role := current_setting('role');
    job_table := {job_name}::regclass::oid;

    -- The claim: a second or late call finds nothing to do. Nor does a role that sees the jobs of others, whose SQL
    -- would run with its privileges.
    UPDATE {schema}.job AS j
       SET state = 'running',
           started_at = clock_timestamp(),
           pid = pg_backend_pid(),
           backend_start = (SELECT a.backend_start FROM pg_stat_activity AS a WHERE a.pid = pg_backend_pid())
     WHERE j.id = job_id AND j.state = 'sent' AND j.owner = CURRENT_USER
 RETURNING j.ctid AS place, j.settings, j.keep_result, j.is_query, coalesce(j.bound_statement, j.statement) AS statement,
           CASE WHEN j.keep_result THEN 'result_' || replace(j.id::text, '-', '') END AS result_table
      INTO job;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    to_run := job.statement;
    IF job.keep_result THEN
        to_run := format('CREATE TABLE %I.%I AS %s', {results_name}, job.result_table, job.statement);
    END IF;
    COMMIT;
    -- Tells the sender that it may leave. INFO reaches it whatever client_min_messages is.
    RAISE INFO 'airflow_dblink: the job is running';

    BEGIN
        -- The client may be gone: a message to it would end the session, and so could a check whether it is there.
        PERFORM pg_catalog.set_config('client_min_messages', 'error', true),
                pg_catalog.set_config('client_connection_check_interval', '0', true),
                pg_catalog.set_config('cursor_tuple_fraction', '1', true);
        PERFORM pg_catalog.set_config(s.key, s.value, true)
           FROM pg_catalog.jsonb_each_text(job.settings) AS s;
        IF job.is_query AND NOT job.keep_result THEN
            OPEN discarded NO SCROLL FOR EXECUTE to_run;
            MOVE FORWARD ALL FROM discarded;
            GET DIAGNOSTICS rows = ROW_COUNT;
            CLOSE discarded;
        ELSE
            EXECUTE to_run;
            GET DIAGNOSTICS rows = ROW_COUNT;
        END IF;
        -- Deferred constraints fail here, since a failure of COMMIT can't be caught.
        SET CONSTRAINTS ALL IMMEDIATE;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
                pg_catalog.set_config('enable_seqscan', 'off', true),
                pg_catalog.set_config('role', own_role, true);
        -- If the job table was replaced meanwhile, anybody may own the new one.
        LOCK TABLE {schema}.job IN ROW EXCLUSIVE MODE;
        IF {job_name}::regclass::oid <> job_table THEN
            RAISE EXCEPTION 'the job table was replaced while the job was running'
                  USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        -- The fence: a job that was given up as lost can't be committed any more. The row is first found by its
        -- place (ctid): a serializable job that searched the table would conflict with all others.
        UPDATE {schema}.job AS j
           SET state = 'succeeded', ended_at = clock_timestamp(), row_count = rows,
               result_table = job.result_table, bound_statement = NULL
         WHERE j.ctid = job.place AND j.id = job_id AND j.state = 'running' AND j.pid = pg_backend_pid();
        IF NOT FOUND THEN -- a request to cancel it has moved its row
            UPDATE {schema}.job AS j
               SET state = 'succeeded', ended_at = clock_timestamp(), row_count = rows,
                   result_table = job.result_table, bound_statement = NULL
             WHERE j.id = job_id AND j.state = 'running' AND j.pid = pg_backend_pid();
        END IF;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the job was given up while it was running' USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
    EXCEPTION
        WHEN OTHERS OR query_canceled OR assert_failure THEN
            GET STACKED DIAGNOSTICS error_sqlstate = RETURNED_SQLSTATE,
                                    error_message = MESSAGE_TEXT,
                                    error_detail = PG_EXCEPTION_DETAIL,
                                    error_hint = PG_EXCEPTION_HINT,
                                    error_context = PG_EXCEPTION_CONTEXT;
            failed := true;
    END;

    IF failed THEN
        ROLLBACK;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('client_min_messages', 'error', true),
                pg_catalog.set_config('client_connection_check_interval', '0', true),
                pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF to_regclass({job_name}) IS NULL THEN
            RETURN;
        END IF;
        LOCK TABLE {schema}.job IN ROW EXCLUSIVE MODE;
        IF {job_name}::regclass::oid <> job_table THEN
            RETURN;
        END IF;
        UPDATE {schema}.job AS j
           -- 40001: under its isolation level the job can't update its row after a request to cancel has marked it.
           SET state = CASE WHEN error_sqlstate IN ('57014', '40001') AND j.cancel_requested_at IS NOT NULL
                            THEN 'cancelled' ELSE 'failed' END,
               ended_at = clock_timestamp(),
               bound_statement = NULL,
               sqlstate = error_sqlstate,
               message = error_message,
               detail = nullif(error_detail, ''),
               hint = nullif(error_hint, ''),
               -- Without the statement, which holds values, and without the lines of this procedure and its call.
               context = nullif(rtrim(regexp_replace(
                   replace(replace(error_context, 'SQL statement "' || to_run || '"', ''), to_run, '...'),
                   'PL/pgSQL function [^\n]*run\(uuid\) line \d+ at [^\n]*'
                   '(\nSQL statement "CALL .*\nPL/pgSQL function inline_code_block line \d+ at CALL)?$', ''), E'\n'), '')
         WHERE j.id = job_id AND j.state = 'running' AND j.pid = pg_backend_pid();
    END IF;
    COMMIT;

    -- Not in the job's own transaction: its commit would hold PostgreSQL's single lock for notifications, and fail
    -- if the queue is full.
    PERFORM pg_catalog.set_config('client_min_messages', 'error', true),
            pg_catalog.set_config('client_connection_check_interval', '0', true),
            pg_catalog.pg_notify('airflow_dblink_job', job_id::pg_catalog.text);
    COMMIT;
END
{quote};
REVOKE ALL ON PROCEDURE {schema}.run(uuid) FROM PUBLIC;
COMMENT ON SCHEMA {schema} IS {comment};
COMMENT ON TABLE {schema}.job IS 'Remote jobs of Airflow tasks (airflow-dblink). Rows of ended jobs may be deleted.';

-- name: grant
-- For each role that sends jobs and does not own the schema.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.job TO {role};
GRANT EXECUTE ON PROCEDURE {schema}.run(uuid) TO {role};

-- name: grant_results
-- Only for jobs that keep their result: that is a table in this schema, which the role owns.
GRANT USAGE, CREATE ON SCHEMA {results} TO {role};
