"""Objects for all shapes: types, and kinds of relations that a random table can't be."""

from __future__ import annotations

from tests.databases import Database

_KIT = """
CREATE EXTENSION dblink;
CREATE SCHEMA kit;
CREATE EXTENSION citext SCHEMA kit;
CREATE EXTENSION hstore SCHEMA kit;
GRANT USAGE ON SCHEMA kit TO PUBLIC;
CREATE TYPE kit.mood AS ENUM ('happy', 'so ''so''', 'back\\slash');
CREATE DOMAIN kit.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN kit.label AS text NOT NULL;
CREATE DOMAIN kit.numbers AS int[];
CREATE TYPE kit.pair AS (a int, b text);
CREATE DOMAIN kit.good_pair AS kit.pair CHECK ((VALUE).a > 0);
CREATE TYPE kit.text_range AS RANGE (subtype = text);
CREATE FUNCTION kit.raise(int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
  IF $1 = 1 THEN RAISE 'it''s % %%', $1 USING ERRCODE = 'ZZ001'; END IF;
  RETURN $1;
END $$;

CREATE TABLE kit.ages (a int PRIMARY KEY, b text);
INSERT INTO kit.ages VALUES (1, 'one'), (2, 'it''s two'), (3, NULL);
CREATE TABLE kit.children (c int) INHERITS (kit.ages);
INSERT INTO kit.children VALUES (2, 'again', 1), (4, 'four', 1);
CREATE TABLE kit.policied AS TABLE kit.ages;
ALTER TABLE kit.policied ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON kit.policied USING (a > 1);
CREATE VIEW kit.failing AS SELECT 1 / (a - 1) AS q, a, b FROM kit.ages;
CREATE VIEW kit.raising AS SELECT kit.raise(a) AS a, b FROM kit.ages;
CREATE SEQUENCE kit.numbered;
CREATE TABLE kit.parted (b text, a int, PRIMARY KEY (a)) PARTITION BY RANGE (a);
CREATE TABLE kit.lower (a int NOT NULL, gone int, b text);
ALTER TABLE kit.lower DROP COLUMN gone;
ALTER TABLE kit.parted ATTACH PARTITION kit.lower FOR VALUES FROM (0) TO (10);
INSERT INTO kit.parted VALUES ('one', 1), (NULL, 2);
CREATE SERVER distant FOREIGN DATA WRAPPER dblink_fdw;
CREATE FOREIGN TABLE kit.distant (a int, b text) SERVER distant;
CREATE TABLE kit."odd 'name" ("it's" int PRIMARY KEY);
INSERT INTO kit."odd 'name" VALUES (1), (2);
GRANT SELECT ON ALL TABLES IN SCHEMA kit TO PUBLIC;

CREATE TABLE kit.forbidden AS TABLE kit.ages;
CREATE TABLE kit.partly AS TABLE kit.ages;
GRANT SELECT (a) ON kit.partly TO PUBLIC;
CREATE VIEW kit.forbidden_view AS TABLE kit.ages;
CREATE VIEW kit.borrowed AS TABLE kit.forbidden;
CREATE SCHEMA hidden;
CREATE TABLE hidden.known AS TABLE kit.ages;
"""
_PERIODS = """
CREATE TABLE kit.periods (during daterange, room int4range{});
INSERT INTO kit.periods VALUES ('[2024-01-01,2024-02-01)', '[1,2)'), ('[2024-02-01,2024-03-01)', '[1,2)');
GRANT SELECT ON kit.periods TO PUBLIC;
"""


def make_kit(database: Database, version: int) -> None:
    """Make it in *database*, on a server of *version* (180006)."""
    database.admin(_KIT)
    database.admin(f'ALTER VIEW kit.borrowed OWNER TO "{database.server.role}"')
    key = ", PRIMARY KEY (room, during WITHOUT OVERLAPS)" if version >= 180000 else ""
    database.admin(_PERIODS.format(key))
    columns = ", ".join(f"c{i} int DEFAULT {i}" for i in range(1, 301))
    database.admin(f"CREATE TABLE kit.wide ({columns}, PRIMARY KEY (c300, c1))")
    database.admin("INSERT INTO kit.wide DEFAULT VALUES; GRANT SELECT ON kit.wide TO PUBLIC")
