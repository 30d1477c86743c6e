-- name: snapshot
-- The transaction's snapshot, and the history of transaction ids that it belongs to. A standby's snapshot doesn't list the
-- transactions that run on the primary, and it can't name its WAL file.
SELECT pg_current_snapshot()::text AS snapshot,
       (SELECT c.system_identifier::text FROM pg_control_system() AS c) AS system_identifier,
       (SELECT d.oid::text FROM pg_database AS d WHERE d.datname = current_database()) AS database,
       CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
       pg_is_in_recovery() AS is_standby;

-- name: is_new
-- Whether a row's transaction is one that the snapshot doesn't show. The first condition lets an index serve.
{xid} OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmin({snapshot}::pg_catalog.pg_snapshot)
   AND NOT pg_catalog.pg_visible_in_snapshot({xid}, {snapshot}::pg_catalog.pg_snapshot);
