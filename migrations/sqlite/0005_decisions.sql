-- What decisions depended on, for replays; what callers said of answers; how often answers were asked for again.
-- See the comments in ../0005_decisions.sql, which has the same tables for Postgres.

CREATE TABLE decisions (
    request    BLOB    NOT NULL PRIMARY KEY,
    started_us INTEGER NOT NULL,
    decision   TEXT    NOT NULL
) WITHOUT ROWID;
CREATE INDEX decisions_started ON decisions (started_us);

CREATE TABLE outcomes (
    request      BLOB    NOT NULL PRIMARY KEY,
    told_us      INTEGER NOT NULL,
    org          TEXT    NOT NULL,
    workflow     TEXT    NOT NULL,
    deployment   TEXT    NOT NULL,
    success      INTEGER NOT NULL,
    value        INTEGER NOT NULL,
    stated       INTEGER NOT NULL,
    believed_ppm INTEGER NOT NULL,
    note         TEXT,
    node         TEXT    NOT NULL
) WITHOUT ROWID;
CREATE INDEX outcomes_told ON outcomes (told_us);

CREATE TABLE answered (
    day_us      INTEGER NOT NULL,
    org         TEXT    NOT NULL,
    workflow    TEXT    NOT NULL,
    deployment  TEXT    NOT NULL,
    calls       INTEGER NOT NULL,
    retries     INTEGER NOT NULL,
    escalations INTEGER NOT NULL,
    PRIMARY KEY (day_us, org, workflow, deployment)
) WITHOUT ROWID;
