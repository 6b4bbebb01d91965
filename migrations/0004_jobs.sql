-- Jobs: files of requests, batches, single requests that may wait; their items; and the packs in which items travel.
-- Amounts are nano-dollars, times are microseconds since the epoch by the clock of the database. What items hold (prompts
-- and answers) is sealed with the gateway's key, or absent where it is kept in memory only.

CREATE TABLE jobs (
    id           TEXT   NOT NULL PRIMARY KEY,
    kind         TEXT   NOT NULL,
    org          TEXT   NOT NULL,
    team         TEXT   NOT NULL,
    workflow     TEXT   NOT NULL,
    key          TEXT   NOT NULL,
    key_hash     TEXT   NOT NULL,
    dialect      TEXT   NOT NULL,
    endpoint     TEXT   NOT NULL,
    state        TEXT   NOT NULL,
    input        TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    metadata     TEXT   NOT NULL,
    webhook      TEXT   NOT NULL,
    idempotency  TEXT   NOT NULL,
    total        BIGINT NOT NULL,
    bytes        BIGINT NOT NULL,
    cells        TEXT   NOT NULL,
    created_us   BIGINT NOT NULL,
    deadline_us  BIGINT NOT NULL,
    cancelled_us BIGINT NOT NULL,
    ended_us     BIGINT NOT NULL,
    expires_us   BIGINT NOT NULL,
    hook_us      BIGINT NOT NULL,
    hook_tries   BIGINT NOT NULL,
    problem      TEXT   NOT NULL
);
CREATE INDEX jobs_live ON jobs (state);
CREATE INDEX jobs_of ON jobs (org, team, kind, created_us);
CREATE UNIQUE INDEX jobs_once ON jobs (org, team, workflow, key, kind, idempotency) WHERE idempotency <> '';

CREATE TABLE job_items (
    job         TEXT    NOT NULL,
    number      BIGINT  NOT NULL,
    custom_id   TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    way         TEXT    NOT NULL,
    rescue      BOOLEAN NOT NULL,
    pool        TEXT    NOT NULL,
    provider    TEXT    NOT NULL,
    deployment  TEXT    NOT NULL,
    model       TEXT    NOT NULL,
    class       TEXT    NOT NULL,
    pack        TEXT    NOT NULL,
    request     TEXT    NOT NULL,
    prefix      BIGINT  NOT NULL,
    bytes       BIGINT  NOT NULL,
    held        BIGINT  NOT NULL,
    charge      BIGINT  NOT NULL,
    saved       BIGINT  NOT NULL,
    tries       BIGINT  NOT NULL,
    deadline_us BIGINT  NOT NULL,
    ready_us    BIGINT  NOT NULL,
    node        TEXT    NOT NULL,
    lease_us    BIGINT  NOT NULL,
    status      BIGINT  NOT NULL,
    problem     TEXT    NOT NULL,
    ended_us    BIGINT  NOT NULL,
    input       BYTEA,
    output      BYTEA,
    PRIMARY KEY (job, number)
);
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
    items        BIGINT  NOT NULL,
    cancelling   BOOLEAN NOT NULL,
    tries        BIGINT  NOT NULL,
    created_us   BIGINT  NOT NULL,
    submitted_us BIGINT  NOT NULL,
    ended_us     BIGINT  NOT NULL,
    deadline_us  BIGINT  NOT NULL,
    next_us      BIGINT  NOT NULL,
    node         TEXT    NOT NULL,
    lease_us     BIGINT  NOT NULL,
    problem      TEXT    NOT NULL
);
CREATE INDEX packs_live ON packs (next_us) WHERE state NOT IN ('settled', 'void');
CREATE INDEX packs_ended ON packs (provider, model, ended_us);
COMMENT ON TABLE jobs IS 'A file of requests, a batch of them, or one request that may wait.';
COMMENT ON COLUMN jobs.kind IS 'file, batch (OpenAI), messages (Anthropic), request.';
COMMENT ON COLUMN jobs.state IS 'receiving, ready (a file), starting, running, cancelling, ended, failed.';
COMMENT ON COLUMN jobs.cells IS 'JSON: by deployment, the budget windows in which money is held for the job; the lease is that of the node job/ID.';
COMMENT ON TABLE job_items IS 'One request of a job: filed, then queued, packed, submitted, and one of succeeded, errored, expired, cancelled, rescued.';
COMMENT ON COLUMN job_items.way IS 'How it is to be answered: batch, flex, local, standard.';
COMMENT ON COLUMN job_items.request IS 'The ledger''s request that paid for it.';
COMMENT ON COLUMN job_items.saved IS 'What the same usage would have cost at the standard tier, less the charge; negative where a rescue was dearer than the batch.';
COMMENT ON TABLE packs IS 'A batch at a provider, with items of any jobs: packed, creating, submitted, ended, settled; void where it came to nothing.';

-- What each team's jobs came to, by UTC day of their end.
CREATE VIEW finance.batch_daily AS
SELECT date_trunc('day', finance.moment(i.ended_us), 'UTC') AS day, nullif(j.org, '') AS org, nullif(j.team, '') AS team,
    nullif(j.workflow, '') AS workflow, i.provider, i.model, i.way, i.state,
    count(*) AS items, count(*) FILTER (WHERE i.ended_us > i.deadline_us) AS late,
    finance.dollars(sum(i.charge)) AS cost, finance.dollars(sum(i.saved)) AS saved
FROM job_items i JOIN jobs j ON j.id = i.job
WHERE i.ended_us > 0
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;
COMMENT ON VIEW finance.batch_daily IS 'Items of jobs by how they ended and which way they were answered. saved: what they would have cost at the standard tier, less what they did.';
