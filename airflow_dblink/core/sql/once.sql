-- name: ticket
-- Gives the transaction its id, and returns facts about the transaction, its session and its server, before any
-- work is done. The server's facts distinguish histories of transaction ids: two servers, a restored or promoted
-- copy (new timeline), and the time before and after a crash. After a crash, ids that never reached the WAL are
-- handed out again; "log_id" prevents that for this id. (A crash resets statistics; a clean restart doesn't.)
SELECT pg_catalog.pg_current_xact_id()::text AS xid,
       pg_catalog.pg_backend_pid() AS pid,
       (SELECT extract(epoch FROM backend_start)::text
          FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()) AS backend_start,
       (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_identifier,
       (SELECT oid::text FROM pg_catalog.pg_database
         WHERE datname = pg_catalog.current_database()) AS database,
       pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) AS timeline,
       (SELECT extract(epoch FROM stats_reset)::text FROM pg_catalog.pg_stat_bgwriter) AS crash_epoch;

-- name: log_id
-- Writes a record to the WAL, and the WAL to disk. Each record names its transaction, and after a crash the server
-- hands out no id again that the WAL names. The record itself is an empty message for logical decoding.
SELECT pg_catalog.pg_logical_emit_message(false, 'airflow_dblink', ''::pg_catalog.text, flush => true)
       ::pg_catalog.text AS lsn;

-- name: log_id_before_17
-- The same without the write to disk, for which older versions have no function that every role may call; see
-- "flush".
SELECT pg_catalog.pg_logical_emit_message(false, 'airflow_dblink', ''::pg_catalog.text)
       ::pg_catalog.text AS lsn;

-- name: flush
-- Makes the transaction's COMMIT write the WAL to disk: that takes an id, a record, and a synchronous commit, since
-- the role's default may be asynchronous. With "local" it waits for no standby.
SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text AS xid,
       pg_catalog.pg_logical_emit_message(false, 'airflow_dblink', ''::pg_catalog.text),
       pg_catalog.set_config('synchronous_commit', 'local', true);

-- name: is_flushed
-- Whether the other session's record is on disk. No row if another server answers, which may happen with several
-- hosts, or behind a pooler: only the right server shows that session.
SELECT pg_catalog.pg_current_wal_flush_lsn() >= %(lsn)s::pg_lsn AS is_flushed
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296
   AND (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) = %(system_identifier)s;

-- name: server
-- The ticket's facts about the server, without a transaction id. A standby can't name its WAL file, and doesn't
-- know the outcome anyway.
SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_identifier,
       (SELECT oid::text FROM pg_catalog.pg_database
         WHERE datname = pg_catalog.current_database()) AS database,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby'
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
       END AS timeline,
       (SELECT extract(epoch FROM stats_reset)::text FROM pg_catalog.pg_stat_bgwriter) AS crash_epoch;

-- name: outcome
-- committed, aborted or in progress; NULL if the id is too old. Error 22023 if the server has not reached the id.
SELECT pg_catalog.pg_xact_status(%(xid)s::xid8) AS outcome;

-- name: orphan
-- The session that still runs the transaction. backend_xid holds 32 bits of the id. pid and backend_start aren't
-- enough: a pooler's session may run another client's transaction by now.
SELECT state LIKE 'idle%%' OR wait_event = 'ClientRead' AS waits_for_client,
       application_name = %(application_name)s::pg_catalog.name::text AS is_ours
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296;

-- name: cancel_orphan
-- Users may have changed the ticket. So this cancels a session only if its application_name is this task's.
SELECT pg_catalog.pg_cancel_backend(pid)
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296
   AND application_name = %(application_name)s::pg_catalog.name::text;

-- name: terminate_orphan
-- For a session that is idle in a transaction or waits in COPY FROM STDIN, to which a cancel does nothing.
SELECT pg_catalog.pg_terminate_backend(pid)
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296
   AND application_name = %(application_name)s::pg_catalog.name::text;
