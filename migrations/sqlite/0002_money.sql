-- Budgets with windows, leases of them to nodes, alerts, the audit trail, and spend by the hour.
-- See the comments in ../0001_ledger.sql, which has the same tables for Postgres.

ALTER TABLE requests ADD COLUMN node   TEXT    NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN origin TEXT    NOT NULL DEFAULT 'live';
ALTER TABLE requests ADD COLUMN held   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN late   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN tier   TEXT    NOT NULL DEFAULT 'standard';
ALTER TABLE attempts ADD COLUMN lines  TEXT    NOT NULL DEFAULT '[]';

CREATE TABLE hourly (
    hour_us          INTEGER NOT NULL,
    org              TEXT    NOT NULL,
    team             TEXT    NOT NULL,
    workflow         TEXT    NOT NULL,
    key              TEXT    NOT NULL,
    provider         TEXT    NOT NULL,
    model            TEXT    NOT NULL,
    class            TEXT    NOT NULL,
    origin           TEXT    NOT NULL,
    tier             TEXT    NOT NULL,
    value            TEXT    NOT NULL,
    requests         INTEGER NOT NULL,
    refused          INTEGER NOT NULL,
    attempts         INTEGER NOT NULL,
    charge           INTEGER NOT NULL,
    cancelled_charge INTEGER NOT NULL,
    failed_charge    INTEGER NOT NULL,
    input_tokens     INTEGER NOT NULL,
    cached_tokens    INTEGER NOT NULL,
    output_tokens    INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    PRIMARY KEY (hour_us, org, team, workflow, key, provider, model, class, origin, tier, value)
) STRICT, WITHOUT ROWID;

INSERT INTO hourly
SELECT r.started_us - r.started_us % 3600000000, coalesce(r.org, ''), coalesce(r.team, ''), coalesce(r.workflow, ''),
       coalesce(r.key, ''), coalesce(a.provider, ''), coalesce(a.model, ''), coalesce(a.class, ''), 'live', 'standard', r.value,
       count(DISTINCT r.id), count(DISTINCT CASE WHEN r.ending = 'refused' THEN r.id END), count(a.number),
       coalesce(sum(a.charge), 0),
       coalesce(sum(CASE WHEN a.outcome = 'cancelled' THEN a.charge END), 0),
       coalesce(sum(CASE WHEN a.outcome NOT IN ('answered', 'cancelled') THEN a.charge END), 0),
       coalesce(sum(a.input + a.audio_input + a.image_input), 0),
       coalesce(sum(a.cache_read + a.cache_write + a.cache_write_1h), 0),
       coalesce(sum(a.output + a.audio_output + a.image_output), 0), coalesce(sum(a.reasoning), 0)
FROM requests r LEFT JOIN attempts a ON a.request = r.id
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, r.value;

DROP TABLE daily_spend;

CREATE TABLE budgets (
    id                TEXT    NOT NULL PRIMARY KEY,
    org               TEXT    NOT NULL,
    team              TEXT    NOT NULL,
    workflow          TEXT    NOT NULL,
    key               TEXT    NOT NULL,
    amount            INTEGER NOT NULL,
    period            TEXT    NOT NULL,
    zone              TEXT    NOT NULL,
    enforcement       TEXT    NOT NULL,
    thresholds        TEXT    NOT NULL,
    scope             TEXT    NOT NULL,
    increase          INTEGER NOT NULL,
    increase_until_us INTEGER NOT NULL,
    source            TEXT    NOT NULL,
    retired           INTEGER NOT NULL,
    changed_us        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE budget_windows (
    budget            TEXT    NOT NULL,
    starts_us         INTEGER NOT NULL,
    ends_us           INTEGER NOT NULL,
    amount            INTEGER NOT NULL,
    increase          INTEGER NOT NULL,
    increase_until_us INTEGER NOT NULL,
    spent             INTEGER NOT NULL,
    leased            INTEGER NOT NULL,
    last_grant        INTEGER NOT NULL,
    PRIMARY KEY (budget, starts_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE nodes (
    node         TEXT    NOT NULL PRIMARY KEY,
    started_us   INTEGER NOT NULL,
    heartbeat_us INTEGER NOT NULL,
    lapsed       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    node        TEXT    NOT NULL,
    budget      TEXT    NOT NULL,
    starts_us   INTEGER NOT NULL,
    taken       INTEGER NOT NULL,
    used        INTEGER NOT NULL,
    written_off INTEGER NOT NULL,
    PRIMARY KEY (node, budget, starts_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE alerts (
    budget    TEXT    NOT NULL,
    starts_us INTEGER NOT NULL,
    threshold INTEGER NOT NULL,
    spent     INTEGER NOT NULL,
    amount    INTEGER NOT NULL,
    raised_us INTEGER NOT NULL,
    PRIMARY KEY (budget, starts_us, threshold)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    id      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_us   INTEGER NOT NULL,
    actor   TEXT    NOT NULL,
    reason  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    before  TEXT,
    after   TEXT
) STRICT;

CREATE TABLE keys (
    hash       BLOB    NOT NULL PRIMARY KEY,
    org        TEXT    NOT NULL,
    team       TEXT    NOT NULL,
    workflow   TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    hint       TEXT    NOT NULL,
    models     TEXT    NOT NULL,
    classes    TEXT    NOT NULL,
    networks   TEXT    NOT NULL,
    created_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    revoked    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
