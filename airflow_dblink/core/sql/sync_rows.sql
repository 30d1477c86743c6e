-- name: groups
-- The UNION ALL with no rows hides the column's statistics, so the planner expects 200 groups and hashes them in
-- memory. Otherwise it would expect as many groups as keys, and sort all rows on disk.
SELECT g OPERATOR(pg_catalog.>>) {bits} AS block, pg_catalog.sum(c)::bigint AS rows,
       pg_catalog.string_agg(
           pg_catalog.int2send((g OPERATOR(pg_catalog.&) {mask})::smallint)
           OPERATOR(pg_catalog.||) pg_catalog.int4send(least(c, {most})::integer)
           OPERATOR(pg_catalog.||) pg_catalog.int8send(x), ''::pg_catalog.bytea ORDER BY g) AS groups
  FROM (SELECT g, pg_catalog.bit_xor(h) AS x, pg_catalog.count(*) AS c
          FROM ({rows} UNION ALL SELECT NULL::bigint, NULL::bigint WHERE false) AS numbered
         GROUP BY 1) AS grouped
 GROUP BY 1
 ORDER BY 1;

-- name: make_plan
CREATE TEMP TABLE airflow_dblink_plan ON COMMIT DROP AS
SELECT CASE WHEN here.h IS NULL THEN 'I' WHEN there.h IS NULL THEN 'D' ELSE 'U' END::pg_catalog."char" AS op,
       pg_catalog.row_number() OVER () AS n, {keys}, here.h AS old, there.h AS new,
       here.place_table, here.place
  FROM {there} {join} ({here}) AS here ON {same}
 WHERE (here.h OPERATOR(pg_catalog.=) there.h) IS NOT TRUE;

-- name: count_plan
SELECT pg_catalog.count(*) FILTER (WHERE op OPERATOR(pg_catalog.=) 'I') AS missing,
       pg_catalog.count(*) FILTER (WHERE op OPERATOR(pg_catalog.=) 'U') AS changed,
       pg_catalog.count(*) FILTER (WHERE op OPERATOR(pg_catalog.=) 'D') AS extra
  FROM {plan};

-- name: digest_plan
SELECT pg_catalog.bit_xor({first}) AS first, pg_catalog.bit_xor({second}) AS second FROM {plan};

-- name: wanted_keys
SELECT *
  FROM (SELECT n, {texts}, pg_catalog.sum(pg_catalog.octet_length(pg_catalog.concat({names})))
               OVER (ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
          FROM {plan}
         WHERE n OPERATOR(pg_catalog.>) {after} AND op OPERATOR(pg_catalog.=) ANY ({operations})
         ORDER BY n LIMIT {most}) AS wanted
 WHERE before IS NULL OR before OPERATOR(pg_catalog.<) {most_bytes}
 ORDER BY n;

-- name: apply
-- One statement, so that PostgreSQL checks foreign keys after all changes, whatever their order. But a unique value
-- must be given up before another row takes it, so each part waits for the one before it.
WITH d AS ({delete}),
     u AS ({update}),
     i AS ({insert})
SELECT (SELECT pg_catalog.count(*) FROM d) AS deleted, (SELECT pg_catalog.count(*) FROM u) AS updated,
       (SELECT pg_catalog.count(*) FROM i) AS inserted;

-- name: apply_delete
DELETE FROM {target} AS part USING {plan} AS plan
            WHERE plan.op OPERATOR(pg_catalog.=) ANY ('{{D,R}}') AND {on} AND {there} RETURNING 1;

-- name: apply_update
UPDATE {target} AS part SET {assignments} FROM {plan} AS plan JOIN {rows} AS given ON {given}
            WHERE plan.op OPERATOR(pg_catalog.=) 'U' AND {on} AND {there}
              AND (SELECT pg_catalog.count(*) FROM d) IS NOT NULL RETURNING 1;

-- name: apply_insert
INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE
           SELECT {values} FROM {plan} AS plan JOIN {rows} AS given ON {given}
            WHERE plan.op OPERATOR(pg_catalog.=) ANY ('{{I,S}}') AND {on}
              AND (SELECT pg_catalog.count(*) FROM u) IS NOT NULL RETURNING 1;

-- name: standing
-- Keys and places of rows that hold a unique value which another row will take.
SELECT DISTINCT {named}, {place} FROM {rows} AS given
  JOIN {plan} AS plan ON {given} AND plan.op OPERATOR(pg_catalog.=) ANY ('{{I,U,S}}') AND {on}
  JOIN {target} AS part ON {same} AND NOT ({itself});

-- name: renew
UPDATE {plan} AS plan SET op = 'S' FROM ({standing}) AS standing
 WHERE {same} AND plan.op OPERATOR(pg_catalog.=) 'U';

-- name: remove_renewed
INSERT INTO {plan} SELECT 'R', 0, {names}, NULL, NULL, place_table, place FROM {plan} AS plan
 WHERE op OPERATOR(pg_catalog.=) 'S'
   AND NOT EXISTS (SELECT FROM {plan} AS twin WHERE twin.op OPERATOR(pg_catalog.=) 'R' AND {same});

-- name: given_twice
SELECT 1 AS one FROM ({standing}) AS standing JOIN ({rows}) AS here ON {same}
 WHERE NOT EXISTS (SELECT FROM {plan} AS plan WHERE {planned}) LIMIT 1;

-- name: left_over
SELECT CASE WHEN here.h IS NULL THEN 'I' WHEN there.h IS NULL THEN 'D' ELSE 'U' END AS op, {keys}
  FROM {there} {join} ({here}) AS here ON {same}
 WHERE (here.h OPERATOR(pg_catalog.=) there.h) IS NOT TRUE
   AND CASE WHEN here.h IS NULL THEN 'I' WHEN there.h IS NULL THEN 'D' ELSE 'U' END
       OPERATOR(pg_catalog.=) ANY ({operations})
 LIMIT 1;

-- name: numbers
SELECT n, 0 AS size
  FROM {plan} AS plan
 WHERE op OPERATOR(pg_catalog.=) {operation} AND n OPERATOR(pg_catalog.>) {after}
 ORDER BY n LIMIT {most};

-- name: numbers_and_sizes
SELECT plan.n, pg_catalog.max({size}) AS size
  FROM (SELECT * FROM {plan}
         WHERE op OPERATOR(pg_catalog.=) {operation} AND n OPERATOR(pg_catalog.>) {after}
         ORDER BY n LIMIT {most}) AS plan
  LEFT JOIN {rows} AS given ON {given}
 GROUP BY plan.n
 ORDER BY plan.n;

-- name: encode_statement
INSERT INTO {large} SELECT pg_catalog.convert_to(made.statement, pg_catalog.pg_client_encoding())
  FROM ({made}) AS made;
