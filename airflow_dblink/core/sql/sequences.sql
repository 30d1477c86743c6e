-- name: sequences
-- Sequences that give columns their values: sequences that belong to a column (serial, identity), and those of a
-- default, the column's or its domain's, that is just nextval(); with the role's privileges. Not sequences
-- of a column that isn't a number ('INV-' || nextval(...)).
WITH col AS (
    SELECT a.attrelid, a.attnum, a.attname, a.atttypid, t.typdefaultbin,
           pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL) AS type_name,
           NOT a.atthasdef AND a.attidentity = '' AS takes_domains_default
      FROM pg_catalog.pg_attribute AS a
      JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
     WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
), giving (attnum, oid) AS (
    SELECT d.refobjsubid, d.objid
      FROM pg_catalog.pg_depend AS d
     WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = %(oid)s
       AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
     UNION
    SELECT def.adnum, d.refobjid
      FROM pg_catalog.pg_attrdef AS def
      JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = def.oid
       AND d.refclassid = 'pg_catalog.pg_class'::regclass
     WHERE def.adrelid = %(oid)s
       AND pg_catalog.pg_get_expr(def.adbin, def.adrelid)
           ~ '^\(?nextval\(''[^()]*''::regclass\)\)?(::[a-z]+)?$'
     UNION
    SELECT col.attnum, d.refobjid
      FROM col
      JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = col.atttypid
       AND d.refclassid = 'pg_catalog.pg_class'::regclass
     WHERE col.takes_domains_default
       AND pg_catalog.pg_get_expr(col.typdefaultbin, 0)
           ~ '^\(?nextval\(''[^()]*''::regclass\)\)?(::[a-z]+)?$'
)
SELECT col.attname AS column_name, s.oid::int8 AS oid, n.nspname AS schema_name, s.relname AS name,
       seq.seqmin AS lowest, seq.seqmax AS highest, seq.seqincrement AS step, seq.seqstart AS start,
       seq.seqcycle AS cycles,
       pg_catalog.has_sequence_privilege(s.oid, 'SELECT') AS may_read,
       pg_catalog.has_sequence_privilege(s.oid, 'UPDATE')
           AND pg_catalog.has_sequence_privilege(s.oid, 'USAGE, SELECT')
           AND pg_catalog.has_column_privilege(col.attrelid, col.attnum, 'SELECT') AS may_set
  FROM giving
  JOIN col ON col.attnum = giving.attnum AND col.type_name IN ('smallint', 'integer', 'bigint', 'numeric')
  JOIN pg_catalog.pg_class AS s ON s.oid = giving.oid AND s.relkind = 'S'
  JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
  JOIN pg_catalog.pg_sequence AS seq ON seq.seqrelid = s.oid
 ORDER BY col.attnum, s.relname;

-- name: position
SELECT last_value::numeric AS last, is_called FROM {sequence};

-- name: position_unread
-- For a role without SELECT on the sequence. A sequence that was never called counts as being at its start.
SELECT coalesce(pg_catalog.pg_sequence_last_value({oid}::pg_catalog.oid::pg_catalog.regclass), {start})::numeric AS last,
       pg_catalog.pg_sequence_last_value({oid}::pg_catalog.oid::pg_catalog.regclass) IS NOT NULL AS is_called;

-- name: farthest
-- The column's farthest value in the direction of the sequence, among those that the sequence can give. Values
-- beyond its bounds may be another server's; numeric's NaN and infinity don't count, either.
SELECT pg_catalog.{extreme}({column})::pg_catalog.text AS value
  FROM {table}
 WHERE {column} OPERATOR(pg_catalog.>=) {lowest}::bigint
   AND {column} OPERATOR(pg_catalog.<=) {highest}::bigint;

-- name: move
-- Moves the sequence in its own steps to the last one that isn't beyond the farthest value, so that the next one
-- is beyond it. It stops at its bound, and never moves back. All values are numeric, so that none overflows.
WITH state AS ({position}),
     next AS (SELECT last + CASE WHEN is_called THEN {step}::numeric ELSE 0::numeric END AS value FROM state)
SELECT pg_catalog.setval({oid}::pg_catalog.oid::pg_catalog.regclass,
           (value + {step}::numeric * least(
               pg_catalog.div({farthest}::numeric - value, {step}::numeric),
               pg_catalog.div({bound}::numeric - value, {step}::numeric)))::int8) AS value
  FROM next
 WHERE ({farthest}::numeric - value) * {sign}::numeric >= 0::numeric
   AND ({bound}::numeric - value) * {sign}::numeric >= 0::numeric;

-- name: move_cycling
-- A sequence that cycles is never beyond all values. It is moved, in its own steps, to the longest run of free
-- values, unless the run that begins with its next value is as long. Values are negated if it counts down.
WITH state AS ({position}),
     next AS (
         SELECT CASE WHEN value OPERATOR(pg_catalog.>) {last}::numeric THEN {first}::numeric ELSE value END AS value
           FROM (SELECT (last OPERATOR(pg_catalog.+) CASE WHEN is_called THEN {step}::numeric ELSE 0::numeric END)
                        OPERATOR(pg_catalog.*) {sign}::numeric AS value
                   FROM state) AS counted
     ),
     taken AS (
         SELECT DISTINCT {column}::numeric OPERATOR(pg_catalog.*) {sign}::numeric AS value
           FROM {table}
          WHERE {column} OPERATOR(pg_catalog.>=) {lowest}::bigint
            AND {column} OPERATOR(pg_catalog.<=) {highest}::bigint
     ),
     gap AS (
         SELECT value, coalesce(pg_catalog.lead(value) OVER (ORDER BY value),
                                pg_catalog.min(value) OVER () OPERATOR(pg_catalog.+) {length}::numeric)
                OPERATOR(pg_catalog.-) value AS size
           FROM taken
     ),
     longest AS (SELECT value FROM gap ORDER BY size DESC, value LIMIT 1),
     better AS (
         SELECT CASE WHEN value OPERATOR(pg_catalog.>) {last}::numeric THEN {first}::numeric ELSE value END AS value
           FROM (SELECT longest.value OPERATOR(pg_catalog.+) {stride}::numeric
                        OPERATOR(pg_catalog.-) pg_catalog.mod(
                            pg_catalog.mod(longest.value OPERATOR(pg_catalog.-) next.value, {stride}::numeric)
                            OPERATOR(pg_catalog.+) {stride}::numeric, {stride}::numeric) AS value
                   FROM longest CROSS JOIN next) AS stepped
     ),
     free AS (
         SELECT pg_catalog.min(pg_catalog.mod(
                    taken.value OPERATOR(pg_catalog.-) next.value OPERATOR(pg_catalog.+) {length}::numeric,
                    {length}::numeric)) AS before,
                pg_catalog.min(pg_catalog.mod(
                    taken.value OPERATOR(pg_catalog.-) better.value OPERATOR(pg_catalog.+) {length}::numeric,
                    {length}::numeric)) AS after
           FROM taken CROSS JOIN next CROSS JOIN better
     )
SELECT CASE WHEN better.value OPERATOR(pg_catalog.-) {stride}::numeric OPERATOR(pg_catalog.>=) {first}::numeric
            THEN pg_catalog.setval(
                {oid}::pg_catalog.oid::pg_catalog.regclass,
                ((better.value OPERATOR(pg_catalog.-) {stride}::numeric)
                 OPERATOR(pg_catalog.*) {sign}::numeric)::bigint)
            ELSE pg_catalog.setval(
                {oid}::pg_catalog.oid::pg_catalog.regclass,
                (better.value OPERATOR(pg_catalog.*) {sign}::numeric)::bigint, false) END AS value
  FROM better
 CROSS JOIN free
 WHERE free.before OPERATOR(pg_catalog.<) free.after;
