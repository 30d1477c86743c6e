-- The warehouse's tables: one of today's state, one that keeps every day.
CREATE TABLE IF NOT EXISTS account (
    aid      integer PRIMARY KEY,
    bid      integer,
    abalance integer,
    filler   character(84)
);

CREATE TABLE IF NOT EXISTS account_history (
    loaded_on date,
    id        bigint,
    aid       integer NOT NULL,
    delta     integer NOT NULL,
    mtime     timestamp NOT NULL,
    PRIMARY KEY (loaded_on, id)
);
