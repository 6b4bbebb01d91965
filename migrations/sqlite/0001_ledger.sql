-- One row per request, one row per upstream attempt, and what each account spent each day.
-- Amounts are nano-dollars, times are microseconds since the epoch, ids are UUIDv7 and so sort by time.

CREATE TABLE requests (
    id                  BLOB    NOT NULL PRIMARY KEY,
    started_us          INTEGER NOT NULL,
    settled_us          INTEGER NOT NULL,
    org                 TEXT,
    team                TEXT,
    workflow            TEXT,
    key                 TEXT,
    dialect             TEXT    NOT NULL,
    surface             TEXT    NOT NULL,
    model_asked         TEXT    NOT NULL,
    stream              INTEGER NOT NULL,
    value               TEXT    NOT NULL,
    latency             TEXT    NOT NULL,
    thinking            TEXT,
    policy_version      TEXT    NOT NULL,
    ending              TEXT    NOT NULL,
    phase               TEXT    NOT NULL,
    refusal             TEXT,
    status              INTEGER NOT NULL,
    body_read_us        INTEGER NOT NULL,
    decided_us          INTEGER NOT NULL,
    upstream_headers_us INTEGER NOT NULL,
    first_byte_us       INTEGER NOT NULL,
    total_us            INTEGER NOT NULL,
    charge              INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
    request        BLOB    NOT NULL,
    number         INTEGER NOT NULL,
    deployment     TEXT    NOT NULL,
    provider       TEXT    NOT NULL,
    model          TEXT    NOT NULL,
    class          TEXT    NOT NULL,
    outcome        TEXT    NOT NULL,
    status         INTEGER NOT NULL,
    usage_source   TEXT    NOT NULL,
    input          INTEGER NOT NULL,
    cache_read     INTEGER NOT NULL,
    cache_write    INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    output         INTEGER NOT NULL,
    reasoning      INTEGER NOT NULL,
    audio_input    INTEGER NOT NULL,
    audio_output   INTEGER NOT NULL,
    image_input    INTEGER NOT NULL,
    image_output   INTEGER NOT NULL,
    price_version  TEXT    NOT NULL,
    charge         INTEGER NOT NULL,
    started_us     INTEGER NOT NULL,
    duration_us    INTEGER NOT NULL,
    PRIMARY KEY (request, number)
) STRICT, WITHOUT ROWID;

-- Every account on a request's path has a row per UTC day; a budget window is a run of days.
CREATE TABLE daily_spend (
    account TEXT    NOT NULL,
    day     INTEGER NOT NULL,
    charge  INTEGER NOT NULL,
    PRIMARY KEY (account, day)
) STRICT, WITHOUT ROWID;
