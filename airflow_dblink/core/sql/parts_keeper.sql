-- name: begin
-- The keeper's transaction. READ COMMITTED, so that the snapshot is taken after the table was locked; nothing
-- that the role has set may end the session, and PostgreSQL must not look whether its client is there.
BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
SELECT set_config(name, '0', true)
  FROM pg_settings
 WHERE name IN ('client_connection_check_interval', 'statement_timeout', 'transaction_timeout');

-- name: keep
-- The body of a DO block. It keeps the snapshot until it was kept for too long, or nobody has held the parts'
-- lock for {idle_s}. Not in a block with EXCEPTION: a subtransaction may not export its snapshot.
-- application_name is read by the statement "keeper".
DECLARE
    began CONSTANT timestamptz := clock_timestamp();
    seen timestamptz := began;
    snapshot text;
BEGIN
    snapshot := pg_export_snapshot();
    PERFORM set_config(
        'application_name',
        '{name} ' || snapshot || ' ' || to_hex(extract(epoch FROM clock_timestamp())::bigint),
        true);
    -- The lock is last: by it the session is found, and has to have its name by then.
    IF NOT pg_try_advisory_xact_lock({key}) THEN
        RAISE INFO '{told}';
        RETURN;
    END IF;
    RAISE INFO '{told}';
    LOOP
        EXIT WHEN clock_timestamp() - began >= make_interval(secs => {deadline_s});
        EXIT WHEN clock_timestamp() - seen >= make_interval(secs => {idle_s});
        PERFORM pg_sleep({look_s});
        IF EXISTS (SELECT FROM pg_locks
                    WHERE locktype = 'advisory' AND objsubid = 2
                      AND classid = {high}::oid AND objid = {low}::oid
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) THEN
            seen := clock_timestamp();
        END IF;
    END LOOP;
END

-- name: keeper
-- The session that holds the lock of this key. Locks and names can be taken by anybody: only a session of the
-- same role is believed. pg_locks and these columns are shown to every role.
SELECT a.pid,
       a.application_name AS name,
       a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user) AS is_ours
  FROM pg_catalog.pg_locks AS l
  JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock' AND l.objsubid = 1
   AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database());

-- name: release
-- Ends the session, on request only if no part uses it. Its client has gone, so that there is nobody to ask.
SELECT pg_catalog.pg_terminate_backend(a.pid) AS ended
  FROM pg_catalog.pg_locks AS l
  JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock' AND l.objsubid = 1
   AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
   AND a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
   AND a.application_name LIKE %(name)s || ' %%'
   AND (NOT %(if_unused)s
        OR NOT EXISTS (SELECT
                         FROM pg_catalog.pg_locks AS used
                        WHERE used.locktype = 'advisory' AND used.objsubid = 2 AND used.database = l.database
                          AND used.classid = l.classid AND used.objid = l.objid));

-- name: join
-- A part's lock, by which the keeper sees that somebody still needs it. Shared, so any number of parts can have it;
-- it is refused only if a stranger holds it alone.
SELECT pg_catalog.pg_try_advisory_xact_lock_shared(%(high_int)s::int, %(low_int)s::int) AS has_joined;

-- name: standby
SELECT pg_catalog.pg_is_in_recovery() AS is_standby,
       pg_catalog.current_setting('hot_standby_feedback') = 'on' AS gives_feedback;
