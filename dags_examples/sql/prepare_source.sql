-- pgbench's history has no key; the warehouse needs one to tell new rows from known ones.
-- Both statements are one transaction, run exactly once; both may be run again on another day.
ALTER TABLE pgbench_history ADD COLUMN IF NOT EXISTS id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;

COMMENT ON TABLE pgbench_history IS 'prepared by {{ dag.dag_id }} on {{ dag_run.run_after | ds }}';
