-- What is administered while the gateway runs: accounts, keys, temporary answers for retries, alerts on their way out.

-- Nodes read again what has changed since the version they know. One row, locked first by every change, so that versions
-- become visible in their order: identities of `audit` do not.
CREATE TABLE definitions (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    version  BIGINT NOT NULL
);
INSERT INTO definitions VALUES (1, 0);
COMMENT ON TABLE definitions IS 'Grows with every change to accounts, keys and budgets; each carries the version that last changed it.';

ALTER TABLE budgets ADD COLUMN version BIGINT NOT NULL DEFAULT 0;
CREATE INDEX budgets_version ON budgets (version);

ALTER TABLE audit ADD COLUMN account TEXT NOT NULL DEFAULT '';
COMMENT ON TABLE audit IS 'Who changed what, when and why, with JSON before and after.';
COMMENT ON COLUMN audit.account IS 'Whom the change concerns, as acme/search/nightly/ci; empty for the whole installation.';

CREATE TABLE accounts (
    org        TEXT    NOT NULL,
    team       TEXT    NOT NULL,
    workflow   TEXT    NOT NULL,
    title      TEXT    NOT NULL,
    disabled   BOOLEAN NOT NULL,
    source     TEXT    NOT NULL,
    created_us BIGINT  NOT NULL,
    version    BIGINT  NOT NULL,
    PRIMARY KEY (org, team, workflow)
);
COMMENT ON TABLE accounts IS 'Organisations, teams and workflows; the levels below are the empty text.';
COMMENT ON COLUMN accounts.disabled IS 'No key under it is accepted.';
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
    created_us BIGINT  NOT NULL,
    expires_us BIGINT  NOT NULL,
    disabled   BOOLEAN NOT NULL,
    revoked    BOOLEAN NOT NULL,
    source     TEXT    NOT NULL,
    version    BIGINT  NOT NULL
);
COMMENT ON TABLE keys IS 'Keys of callers and of administrators. What authenticates is in key_secrets.';
COMMENT ON COLUMN keys.role IS 'caller: calls models; admin, finance (reads), team_owner (its own subtree): the admin API. An empty org: everything.';
COMMENT ON COLUMN keys.models IS 'JSON list of names, which may end in *; empty: all. So classes and networks (CIDR).';
COMMENT ON COLUMN keys.expires_us IS '0: never.';
COMMENT ON COLUMN keys.revoked IS 'For good; disabled can be taken back.';
COMMENT ON COLUMN keys.source IS 'config: shown here only; the gateways whose file has it accept it. api: accepted by all.';
CREATE UNIQUE INDEX keys_name ON keys (org, team, workflow, key) WHERE NOT revoked AND source = 'api';
CREATE INDEX keys_version ON keys (version);

CREATE TABLE key_secrets (
    hash       TEXT   NOT NULL PRIMARY KEY,
    key        TEXT   NOT NULL,
    hint       TEXT   NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL
);
COMMENT ON TABLE key_secrets IS 'SHA-256, in hexadecimal, of what the holder of a key sends; two at a time while a key is rotated.';
COMMENT ON COLUMN key_secrets.hint IS 'Its beginning and its end, to tell it apart.';
CREATE INDEX key_secrets_key ON key_secrets (key);

CREATE TABLE replies (
    id          TEXT   NOT NULL PRIMARY KEY,
    fingerprint TEXT   NOT NULL,
    status      BIGINT NOT NULL,
    body        TEXT   NOT NULL,
    at_us       BIGINT NOT NULL
);
COMMENT ON TABLE replies IS 'Answers of the admin API by a hash of who asked and its Idempotency-Key, for a day.';
COMMENT ON COLUMN replies.fingerprint IS 'Of the request: another one under the same key is refused.';
COMMENT ON COLUMN replies.status IS '0: still worked on.';
COMMENT ON COLUMN replies.body IS 'Encrypted with a key made from the Idempotency-Key and the credential, which are not stored.';
CREATE INDEX replies_at ON replies (at_us);

ALTER TABLE alerts ADD COLUMN delivered_us BIGINT NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN tries BIGINT NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN next_try_us BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN alerts.delivered_us IS 'When the webhook took it; 0: not yet.';
COMMENT ON COLUMN alerts.next_try_us IS 'No node tries before.';
CREATE INDEX alerts_due ON alerts (raised_us) WHERE delivered_us = 0;
