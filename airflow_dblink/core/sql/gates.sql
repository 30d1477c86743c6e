-- name: first_value
-- The first column of the first row, if its text is no longer than the limit. The user's search_path holds, so each
-- function, type and operator names its schema. LIMIT stands inside, so that the value is computed once. The other columns
-- keep their names, so the first one gets a name that none has.
SELECT given.value::pg_catalog.text IS NOT NULL AS is_there,
       CASE WHEN pg_catalog.octet_length(given.value::pg_catalog.text) OPERATOR(pg_catalog.<=) {most}
            THEN given.value END AS value
  FROM (SELECT asked.airflow_dblink_first AS value FROM ({query}
) AS asked (airflow_dblink_first) LIMIT 1) AS given;

-- name: rows
-- How many rows there are, as far as it matters.
SELECT pg_catalog.count(*) AS rows FROM (SELECT FROM ({query}
) AS asked LIMIT {most}) AS given;
