-- name: ticket
-- The transaction and its session, known before any work is done. It gives the transaction
-- its id. "server" tells one history of transaction ids from another: two servers, a
-- restored or promoted copy (new timeline), and a crash, after which ids that never reached
-- the WAL are handed out again (statistics are reset by a crash, and not by a clean restart).
-- "log_id" keeps this id from that.
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
-- Writes a record to the WAL, and the WAL to disk. Each record names its transaction, and no crash
-- hands out an id again that the WAL names. The record itself is an empty message for logical decoding.
SELECT pg_catalog.pg_logical_emit_message(false, 'airflow_dblink', ''::pg_catalog.text, flush => true)
       ::pg_catalog.text AS lsn;

-- name: log_id_before_17
-- The same without writing to disk: no function did that which every role may call. See "flush".
SELECT pg_catalog.pg_logical_emit_message(false, 'airflow_dblink', ''::pg_catalog.text)
       ::pg_catalog.text AS lsn;

-- name: flush
-- What a transaction needs so that its COMMIT writes the WAL to disk: an id, a record, and not to be
-- asynchronous, as the role's default may be. With "local" it waits for no standby.
SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text AS xid,
       pg_catalog.pg_logical_emit_message(false, 'airflow_dblink', ''::pg_catalog.text),
       pg_catalog.set_config('synchronous_commit', 'local', true);

-- name: is_flushed
-- Whether the other session's record is on disk. Only its own server shows that session: with several
-- hosts, or behind a pooler, another server may answer.
SELECT pg_catalog.pg_current_wal_flush_lsn() >= %(lsn)s::pg_lsn AS is_flushed
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296
   AND (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) = %(system_identifier)s;

-- name: server
-- The same facts about the server, without giving out a transaction id. A standby can't
-- name its WAL file; the outcome can't be asked of it anyway.
SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_identifier,
       (SELECT oid::text FROM pg_catalog.pg_database
         WHERE datname = pg_catalog.current_database()) AS database,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby'
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
       END AS timeline,
       (SELECT extract(epoch FROM stats_reset)::text FROM pg_catalog.pg_stat_bgwriter) AS crash_epoch;

-- name: outcome
-- committed, aborted, in progress; NULL where the id is too old. 22023 where the server has
-- not reached the id.
SELECT pg_catalog.pg_xact_status(%(xid)s::xid8) AS outcome;

-- name: orphan
-- The session that still runs the transaction. backend_xid holds 32 bits of the id; pid and
-- backend_start alone would also find a pooler's session that has moved on.
SELECT state LIKE 'idle%%' OR wait_event = 'ClientRead' AS waits_for_client,
       application_name = %(application_name)s::pg_catalog.name::text AS is_ours
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296;

-- name: cancel_orphan
-- Whoever wrote the ticket: only what says that it is this task's is ended.
SELECT pg_catalog.pg_cancel_backend(pid)
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296
   AND application_name = %(application_name)s::pg_catalog.name::text;

-- name: terminate_orphan
-- Cancel does nothing to a session that is idle in a transaction or waits in COPY FROM STDIN.
SELECT pg_catalog.pg_terminate_backend(pid)
  FROM pg_catalog.pg_stat_activity
 WHERE pid = %(pid)s
   AND extract(epoch FROM backend_start)::text = %(backend_start)s
   AND backend_xid::text::bigint = %(xid)s::bigint %% 4294967296
   AND application_name = %(application_name)s::pg_catalog.name::text;
