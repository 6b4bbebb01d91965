-- See the comments in ../0003_admin.sql, which has the same tables for Postgres.
-- What is administered while the gateway runs: accounts, keys, temporary answers for retries, alerts on their way out.

-- Nodes read again what has changed since the version they know. One row, locked first by every change, so that versions
-- become visible in their order: identities of `audit` do not.
CREATE TABLE definitions (
    only_row INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    version  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO definitions VALUES (1, 0);

ALTER TABLE budgets ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
CREATE INDEX budgets_version ON budgets (version);

ALTER TABLE audit ADD COLUMN account TEXT NOT NULL DEFAULT '';

CREATE TABLE accounts (
    org        TEXT    NOT NULL,
    team       TEXT    NOT NULL,
    workflow   TEXT    NOT NULL,
    title      TEXT    NOT NULL,
    disabled   INTEGER NOT NULL,
    source     TEXT    NOT NULL,
    created_us INTEGER  NOT NULL,
    version    INTEGER  NOT NULL,
    PRIMARY KEY (org, team, workflow)
) STRICT, WITHOUT ROWID;
CREATE INDEX accounts_version ON accounts (version);

-- Never written before this version.
DROP TABLE keys;
CREATE TABLE keys (
    id         TEXT    NOT NULL PRIMARY KEY,
    org        TEXT    NOT NULL,
    team       TEXT    NOT NULL,
    workflow   TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    role       TEXT    NOT NULL,
    models     TEXT    NOT NULL,
    classes    TEXT    NOT NULL,
    networks   TEXT    NOT NULL,
    created_us INTEGER  NOT NULL,
    expires_us INTEGER  NOT NULL,
    disabled   INTEGER NOT NULL,
    revoked    INTEGER NOT NULL,
    source     TEXT    NOT NULL,
    version    INTEGER  NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX keys_name ON keys (org, team, workflow, key) WHERE NOT revoked AND source = 'api';
CREATE INDEX keys_version ON keys (version);

CREATE TABLE key_secrets (
    hash       TEXT   NOT NULL PRIMARY KEY,
    key        TEXT   NOT NULL,
    hint       TEXT   NOT NULL,
    created_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX key_secrets_key ON key_secrets (key);

CREATE TABLE replies (
    id          TEXT   NOT NULL PRIMARY KEY,
    fingerprint TEXT   NOT NULL,
    status      INTEGER NOT NULL,
    body        TEXT   NOT NULL,
    at_us       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX replies_at ON replies (at_us);

ALTER TABLE alerts ADD COLUMN delivered_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN next_try_us INTEGER NOT NULL DEFAULT 0;
CREATE INDEX alerts_due ON alerts (raised_us) WHERE delivered_us = 0;
