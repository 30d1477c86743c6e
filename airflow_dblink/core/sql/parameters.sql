-- name: structures
-- For each type, whether a Python list becomes an array or JSON. A domain counts as its base type, and an
-- array's elements are looked at, too. json is NULL if they aren't JSON.
WITH RECURSIVE step (position, type, in_array) AS (
    SELECT position, type, false
      FROM pg_catalog.unnest(%(types)s::oid[]) WITH ORDINALITY AS given (type, position)
  UNION ALL
    SELECT step.position,
           CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END,
           step.in_array OR t.typtype <> 'd'
      FROM step
      JOIN pg_catalog.pg_type AS t ON t.oid = step.type
     WHERE t.typtype = 'd' OR t.typcategory = 'A' AND t.typelem <> 0
)
SELECT pg_catalog.bool_or(step.in_array) AS is_array,
       max(t.typname) FILTER (WHERE t.typname IN ('json', 'jsonb')
                                AND t.typnamespace = 'pg_catalog'::regnamespace) AS json
  FROM step
  LEFT JOIN pg_catalog.pg_type AS t ON t.oid = step.type
 GROUP BY step.position
 ORDER BY step.position;
