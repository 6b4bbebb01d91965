-- Jobs: files of requests, batches, single requests that may wait; their items; and the packs in which items travel.
-- Amounts are nano-dollars, times are microseconds since the epoch by the clock of the database. What items hold (prompts
-- and answers) is sealed with the gateway's key, or absent where it is kept in memory only.
-- See the comments in ../0004_jobs.sql, which has the same tables for Postgres.

CREATE TABLE jobs (
    id           TEXT    NOT NULL PRIMARY KEY,
    kind         TEXT    NOT NULL,
    org          TEXT    NOT NULL,
    team         TEXT    NOT NULL,
    workflow     TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    key_hash     TEXT    NOT NULL,
    dialect      TEXT    NOT NULL,
    endpoint     TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    input        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    metadata     TEXT    NOT NULL,
    webhook      TEXT    NOT NULL,
    idempotency  TEXT    NOT NULL,
    total        INTEGER NOT NULL,
    bytes        INTEGER NOT NULL,
    cells        TEXT    NOT NULL,
    created_us   INTEGER NOT NULL,
    deadline_us  INTEGER NOT NULL,
    cancelled_us INTEGER NOT NULL,
    ended_us     INTEGER NOT NULL,
    expires_us   INTEGER NOT NULL,
    hook_us      INTEGER NOT NULL,
    hook_tries   INTEGER NOT NULL,
    problem      TEXT    NOT NULL
) STRICT;
CREATE INDEX jobs_live ON jobs (state);
CREATE INDEX jobs_of ON jobs (org, team, kind, created_us);
CREATE UNIQUE INDEX jobs_once ON jobs (org, team, workflow, key, kind, idempotency) WHERE idempotency <> '';

CREATE TABLE job_items (
    job         TEXT    NOT NULL,
    number      INTEGER NOT NULL,
    custom_id   TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    way         TEXT    NOT NULL,
    rescue      INTEGER NOT NULL,
    pool        TEXT    NOT NULL,
    provider    TEXT    NOT NULL,
    deployment  TEXT    NOT NULL,
    model       TEXT    NOT NULL,
    class       TEXT    NOT NULL,
    pack        TEXT    NOT NULL,
    request     TEXT    NOT NULL,
    prefix      INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    held        INTEGER NOT NULL,
    charge      INTEGER NOT NULL,
    saved       INTEGER NOT NULL,
    tries       INTEGER NOT NULL,
    deadline_us INTEGER NOT NULL,
    ready_us    INTEGER NOT NULL,
    node        TEXT    NOT NULL,
    lease_us    INTEGER NOT NULL,
    status      INTEGER NOT NULL,
    problem     TEXT    NOT NULL,
    ended_us    INTEGER NOT NULL,
    input       BLOB,
    output      BLOB,
    PRIMARY KEY (job, number)
) STRICT;
CREATE INDEX job_items_pack ON job_items (pack) WHERE pack <> '';
CREATE INDEX job_items_open ON job_items (pool, ready_us) WHERE state = 'queued';
CREATE INDEX job_items_out ON job_items (lease_us) WHERE state = 'submitted' AND pack = '';

CREATE TABLE packs (
    id           TEXT    NOT NULL PRIMARY KEY,
    provider     TEXT    NOT NULL,
    deployment   TEXT    NOT NULL,
    model        TEXT    NOT NULL,
    endpoint     TEXT    NOT NULL,
    backend      TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    file         TEXT    NOT NULL,
    remote       TEXT    NOT NULL,
    items        INTEGER NOT NULL,
    cancelling   INTEGER NOT NULL,
    tries        INTEGER NOT NULL,
    created_us   INTEGER NOT NULL,
    submitted_us INTEGER NOT NULL,
    ended_us     INTEGER NOT NULL,
    deadline_us  INTEGER NOT NULL,
    next_us      INTEGER NOT NULL,
    node         TEXT    NOT NULL,
    lease_us     INTEGER NOT NULL,
    problem      TEXT    NOT NULL
) STRICT;
CREATE INDEX packs_live ON packs (next_us) WHERE state NOT IN ('settled', 'void');
CREATE INDEX packs_ended ON packs (provider, model, ended_us);
