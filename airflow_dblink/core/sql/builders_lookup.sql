-- name: at_once
-- Keys are materialized, so that each is cast once and before the join: an input function isn't
-- leakproof, so row-level security couldn't use the key's index. The limit is one row more than there
-- are keys, which is enough to see that a key isn't unique.
WITH k AS MATERIALIZED ({keys})
SELECT k.n, {statement}{more}
  FROM k JOIN {source} AS t ({columns}) ON {condition}
 ORDER BY k.n LIMIT {limit};

-- name: listed
SELECT u.n{keys} FROM ROWS FROM (pg_catalog.generate_series(1, {count}){arrays}) AS u (n{names});

-- name: queried
SELECT u.n{keys} FROM (SELECT pg_catalog.row_number() OVER () AS n{texts} FROM (
{query}
) AS q ({names})) AS u;
