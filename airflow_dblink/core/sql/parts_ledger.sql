-- name: tables
-- What of a load is in its schema. Only what belongs to this role is believed: a stranger's table of that name
-- could have triggers, which would run as this role.
SELECT c.relname AS name,
       c.oid::int8 AS oid,
       c.relowner = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user) AS is_ours,
       pg_catalog.pg_get_userbyid(c.relowner) AS owner
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema_name)s AND c.relname = ANY (%(names)s::text[]);

-- name: end_holders
-- Ends the sessions of this role that hold a lock on the load's table; on request those that only read it, too.
SELECT holder.pid, pg_catalog.pg_terminate_backend(holder.pid) AS ended
  FROM (SELECT DISTINCT a.pid
          FROM pg_catalog.pg_locks AS l
          JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
         WHERE l.locktype = 'relation' AND l.granted AND l.relation = %(oid)s::oid
           AND (%(readers)s OR l.mode <> 'AccessShareLock')
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
           AND a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
           AND a.pid <> pg_catalog.pg_backend_pid()) AS holder;

-- name: place
-- Which server and database this is, whatever its connection is called.
SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS server,
       (SELECT oid::text FROM pg_catalog.pg_database
         WHERE datname = pg_catalog.current_database()) AS database;
