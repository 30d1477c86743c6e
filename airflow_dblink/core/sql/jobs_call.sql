-- name: guarded_call
-- The guard, and then the job, in one block that may commit, as the procedure does.
BEGIN
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    {guard};
    CALL {schema}.run({job_id}::pg_catalog.uuid);
END
