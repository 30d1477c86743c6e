-- name: install
-- Installs the event table in a database: a schema with one table and the functions that emit events. If it is run
-- again, it upgrades them and keeps all events. The schema's comment has the version.
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '10s';
SET LOCAL search_path = pg_catalog, pg_temp;
-- Two sessions may install it at the same moment.
SELECT pg_catalog.pg_advisory_xact_lock(7081424351162117428);

-- Functions of this schema run as their owner, and write into its table. So nothing here may be somebody else's.
{demand_trusted};

-- An older client must not undo the upgrade of a newer one, and a schema that isn't ours stays as it is.
DO {quote}
DECLARE
    there text := (SELECT coalesce(obj_description(n.oid, 'pg_namespace'), '')
                     FROM pg_namespace AS n WHERE n.nspname = {schema_name});
BEGIN
    IF there !~ '^airflow-dblink events, version \d+$' THEN
        RAISE EXCEPTION 'schema % is there, and is not a schema for events', {schema_name}
              USING ERRCODE = 'duplicate_schema', HINT = 'choose another schema for events';
    ELSIF substring(there FROM '\d+$')::int > {version} THEN
        RAISE EXCEPTION 'a newer version of this schema is installed' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
{quote};

CREATE SCHEMA IF NOT EXISTS {schema};
COMMENT ON SCHEMA {schema} IS {comment};

CREATE TABLE IF NOT EXISTS {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL CHECK (octet_length(topic) BETWEEN 1 AND 200),
    payload jsonb,
    emitted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    emitted_by name NOT NULL DEFAULT SESSION_USER,
    -- The run that has claimed it: dag_id/run_id/task_id/map_index.
    claimed_by text,
    claimed_at timestamptz,
    done_at timestamptz
);
CREATE INDEX IF NOT EXISTS event_unclaimed ON {table} (topic, id) WHERE claimed_by IS NULL;
CREATE INDEX IF NOT EXISTS event_claimed ON {table} (claimed_by, id) WHERE claimed_by IS NOT NULL;
CREATE INDEX IF NOT EXISTS event_done ON {table} (done_at) WHERE done_at IS NOT NULL;
COMMENT ON TABLE {table} IS 'Events for Airflow runs (airflow-dblink). Rows with done_at may be deleted.';

-- Emits one event in the caller's transaction, and returns its id. The right to call it is no right to read events.
-- wake: whether a NOTIFY wakes the triggerers. All commits with a NOTIFY wait for each other.
CREATE OR REPLACE FUNCTION {schema}.emit(topic text, payload jsonb DEFAULT NULL, wake boolean DEFAULT true)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {quote}
DECLARE
    new_id bigint;
BEGIN
    INSERT INTO {table} (topic, payload) VALUES (emit.topic, emit.payload) RETURNING id INTO new_id;
    IF wake THEN
        PERFORM pg_notify({channel}, emit.topic);
    END IF;
    RETURN new_id;
END
{quote};

-- Emits an event for each row that a statement has changed: the table, the operation and the row's key, no other value.
-- Arguments: the topic, whether a NOTIFY wakes the triggerers, and the names of the key columns.
-- It runs as its owner, so it calls no function that another role may have made: concat uses a type's own output
-- function, while a cast to text or json may be anybody's.
CREATE OR REPLACE FUNCTION {schema}.capture()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = '1'
SET timezone = 'UTC' SET lc_monetary = 'C'
AS {quote}
DECLARE
    missing text;
    key_of text;
    changes text;
    emitted bigint;
BEGIN
    -- Without transition tables these names could mean the caller's temporary views, whose functions would run as the owner.
    IF NOT EXISTS (SELECT FROM pg_trigger AS t
                    WHERE t.tgrelid = TG_RELID AND t.tgname = TG_NAME
                      AND (TG_OP NOT IN ('INSERT', 'UPDATE') OR t.tgnewtable = 'new_rows')
                      AND (TG_OP NOT IN ('DELETE', 'UPDATE') OR t.tgoldtable = 'old_rows')) THEN
        RAISE EXCEPTION 'trigger % was not made by attach', quote_ident(TG_NAME)
              USING ERRCODE = 'trigger_protocol_violated';
    END IF;
    -- To PostgreSQL r.f is f(r) where there is no column f: row_to_json would run the casts of the table's owner.
    SELECT c INTO missing FROM unnest(TG_ARGV[2:]) AS c
     WHERE NOT EXISTS (SELECT FROM pg_attribute AS a
                        WHERE a.attrelid = TG_RELID AND a.attname = c AND a.attnum > 0 AND NOT a.attisdropped);
    IF FOUND THEN
        RAISE EXCEPTION 'table %.% has no column % any more, which is part of the key of its events',
                        quote_ident(TG_TABLE_SCHEMA), quote_ident(TG_TABLE_NAME), quote_ident(missing)
              USING ERRCODE = 'undefined_column', HINT = {attach_again};
    END IF;
    SELECT 'jsonb_build_object(' || string_agg(format('%L, CASE WHEN r.%I IS NULL THEN NULL ELSE concat(r.%I) END',
                                                      c.name, c.name, c.name), ', ' ORDER BY c.place) || ')'
      INTO key_of
      FROM unnest(TG_ARGV[2:]) WITH ORDINALITY AS c (name, place);
    changes := CASE TG_OP
        WHEN 'INSERT' THEN format('SELECT ''INSERT'' AS operation, %s AS key FROM new_rows AS r', key_of)
        WHEN 'DELETE' THEN format('SELECT ''DELETE'' AS operation, %s AS key FROM old_rows AS r', key_of)
        -- A changed key is the end of one row and the beginning of another.
        WHEN 'UPDATE' THEN format(
            'SELECT CASE WHEN o.key IS NULL THEN ''INSERT'' WHEN n.key IS NULL THEN ''DELETE'' ELSE ''UPDATE'' END AS operation,'
            ' coalesce(n.key, o.key) AS key'
            ' FROM (SELECT DISTINCT %1$s AS key FROM old_rows AS r) AS o'
            ' FULL JOIN (SELECT DISTINCT %1$s AS key FROM new_rows AS r) AS n ON o.key = n.key', key_of)
        ELSE 'SELECT ''TRUNCATE'' AS operation, NULL::jsonb AS key'
    END;
    EXECUTE 'INSERT INTO ' || {table_name} || ' (topic, payload)'
        ' SELECT $1, jsonb_build_object(''table'', $2, ''operation'', c.operation, ''key'', c.key)'
        ' FROM (' || changes || ') AS c' USING TG_ARGV[0], format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
    GET DIAGNOSTICS emitted = ROW_COUNT;
    IF emitted > 0 AND TG_ARGV[1]::boolean THEN
        PERFORM pg_notify({channel}, TG_ARGV[0]);
    END IF;
    RETURN NULL;
END
{quote};

-- Lets a table's changes emit events; called by its owner. By default the key is the primary key. TRUNCATE is one event.
CREATE OR REPLACE FUNCTION {schema}.attach(relation regclass, topic text, key text[] DEFAULT NULL, wake boolean DEFAULT true)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {quote}
DECLARE
    missing text;
    arguments text;
    made text[];
BEGIN
    key := coalesce(key, (
        SELECT array_agg(a.attname::text ORDER BY k.place)
          FROM pg_index AS i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
          JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
         WHERE i.indrelid = relation AND i.indisprimary));
    IF coalesce(cardinality(key), 0) = 0 THEN
        RAISE EXCEPTION 'table % has no primary key', relation
              USING ERRCODE = 'invalid_parameter_value', HINT = 'name the columns that identify its rows: key => ARRAY[''...'']';
    END IF;
    SELECT k INTO missing FROM unnest(key) AS k
     WHERE k IS NULL
        OR NOT EXISTS (SELECT FROM pg_attribute AS a
                        WHERE a.attrelid = relation AND a.attname = k AND a.attnum > 0 AND NOT a.attisdropped
                          AND a.attgenerated <> 'v');
    IF FOUND THEN
        RAISE EXCEPTION 'table % has no column % that is stored', relation, coalesce(quote_ident(missing), 'NULL')
              USING ERRCODE = 'undefined_column';
    END IF;
    IF cardinality(key) > 32 THEN
        RAISE EXCEPTION 'a key has at most 32 columns' USING ERRCODE = 'too_many_columns';
    END IF;
    IF relation = {table_name}::regclass THEN
        RAISE EXCEPTION 'events of the event table would never end' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF topic IS NULL OR octet_length(topic) NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'topic must have 1 to 200 bytes' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM {schema}.detach(relation);
    SELECT string_agg(quote_literal(a), ', ' ORDER BY place) INTO arguments
      FROM unnest(ARRAY[topic, coalesce(wake, true)::text] || key) WITH ORDINALITY AS g (a, place);
    FOREACH made SLICE 1 IN ARRAY ARRAY[
        ARRAY['insert', 'REFERENCING NEW TABLE AS new_rows'], ARRAY['delete', 'REFERENCING OLD TABLE AS old_rows'],
        ARRAY['update', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'], ARRAY['truncate', '']]
    LOOP
        EXECUTE format('CREATE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %s(%s)',
                       'airflow_dblink_' || made[1], made[1], relation, made[2], {capture_name}, arguments);
    END LOOP;
END
{quote};

-- Ends what attach has begun.
CREATE OR REPLACE FUNCTION {schema}.detach(relation regclass)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS {quote}
DECLARE
    operation text;
BEGIN
    FOREACH operation IN ARRAY ARRAY['insert', 'delete', 'update', 'truncate'] LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', 'airflow_dblink_' || operation, relation);
    END LOOP;
END
{quote};

-- If a superuser upgrades another role's schema, the functions must not run as superuser.
DO {quote}
DECLARE
    owner oid := (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = {schema_name});
    part text;
BEGIN
    FOR part IN
        SELECT format('FUNCTION %s', p.oid::regprocedure) FROM pg_proc AS p
         WHERE p.pronamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = {schema_name}) AND p.proowner <> owner
        UNION ALL
        SELECT format('TABLE %s', c.oid::regclass) FROM pg_class AS c
         WHERE c.oid = {table_name}::regclass AND c.relowner <> owner
    LOOP
        EXECUTE format('ALTER %s OWNER TO %I', part, pg_get_userbyid(owner));
    END LOOP;
END
{quote};

REVOKE ALL ON FUNCTION {schema}.emit(text, jsonb, boolean), {schema}.capture(),
    {schema}.attach(regclass, text, text[], boolean), {schema}.detach(regclass) FROM PUBLIC;
-- Once more, since somebody may have made a part of it meanwhile.
{demand_trusted};

-- name: demand_trusted
DO {quote}
DECLARE
    finding json := ({distrusted});
BEGIN
    IF finding IS NOT NULL THEN
        RAISE EXCEPTION 'schema % is there, and % % belongs to role %', {schema_name},
                        finding ->> 'kind', finding ->> 'name', coalesce(finding ->> 'role', '?')
              USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = 'run this as that role, if it is the right owner; or choose another schema for events';
    END IF;
END
{quote}

-- name: grant_emit
-- For each role that emits events, or attaches the table to its own tables. It can't read events.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT EXECUTE ON FUNCTION {schema}.emit(text, jsonb, boolean), {schema}.capture(),
    {schema}.attach(regclass, text, text[], boolean), {schema}.detach(regclass) TO {role};

-- name: grant_claim
-- For each role that claims events. It can change who has claimed an event, but not what the event says.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT, DELETE, UPDATE (claimed_by, claimed_at, done_at) ON {table} TO {role};
