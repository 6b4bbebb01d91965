-- The ledger in Postgres. Amounts are nano-dollars, times are microseconds since the epoch, ids are UUIDv7 and so sort by
-- time; an absent level of an account is the empty text in keys and NULL in `requests`.
--
-- `requests` and `attempts` are partitioned by day over the id, whose first 48 bits are the millisecond at which the
-- request arrived: the id alone stays unique, and a day that is no longer kept is dropped as a table. The gateway makes
-- partitions ahead of time; what fits none (replayed long after, or from a clock that is wrong) goes to the default one.

CREATE TABLE requests (
    id                  UUID    NOT NULL PRIMARY KEY,
    started_us          BIGINT  NOT NULL,
    settled_us          BIGINT  NOT NULL,
    org                 TEXT,
    team                TEXT,
    workflow            TEXT,
    key                 TEXT,
    dialect             TEXT    NOT NULL,
    surface             TEXT    NOT NULL,
    model_asked         TEXT    NOT NULL,
    stream              BOOLEAN NOT NULL,
    value               TEXT    NOT NULL,
    latency             TEXT    NOT NULL,
    thinking            TEXT,
    policy_version      TEXT    NOT NULL,
    ending              TEXT    NOT NULL,
    phase               TEXT    NOT NULL,
    refusal             TEXT,
    status              BIGINT  NOT NULL,
    body_read_us        BIGINT  NOT NULL,
    decided_us          BIGINT  NOT NULL,
    upstream_headers_us BIGINT  NOT NULL,
    first_byte_us       BIGINT  NOT NULL,
    total_us            BIGINT  NOT NULL,
    charge              BIGINT  NOT NULL,
    node                TEXT    NOT NULL,
    origin              TEXT    NOT NULL,
    held                BIGINT  NOT NULL,
    late                BOOLEAN NOT NULL
) PARTITION BY RANGE (id);
COMMENT ON TABLE requests IS 'One row per request, refusals included.';
COMMENT ON COLUMN requests.charge IS 'What all its attempts cost, nano-dollars.';
COMMENT ON COLUMN requests.held IS 'What was held for it when it ended; a charge above it was not covered in time.';
COMMENT ON COLUMN requests.late IS 'Settled after its node had been given up, so that its hold had expired: it is posted all the same.';
COMMENT ON COLUMN requests.origin IS 'Where the traffic comes from: live, batch, probe.';
CREATE INDEX requests_started ON requests USING brin (started_us);
CREATE TABLE requests_other PARTITION OF requests DEFAULT;

CREATE TABLE attempts (
    request        UUID   NOT NULL,
    number         BIGINT NOT NULL,
    deployment     TEXT   NOT NULL,
    provider       TEXT   NOT NULL,
    model          TEXT   NOT NULL,
    class          TEXT   NOT NULL,
    outcome        TEXT   NOT NULL,
    status         BIGINT NOT NULL,
    usage_source   TEXT   NOT NULL,
    input          BIGINT NOT NULL,
    cache_read     BIGINT NOT NULL,
    cache_write    BIGINT NOT NULL,
    cache_write_1h BIGINT NOT NULL,
    output         BIGINT NOT NULL,
    reasoning      BIGINT NOT NULL,
    audio_input    BIGINT NOT NULL,
    audio_output   BIGINT NOT NULL,
    image_input    BIGINT NOT NULL,
    image_output   BIGINT NOT NULL,
    price_version  TEXT   NOT NULL,
    charge         BIGINT NOT NULL,
    started_us     BIGINT NOT NULL,
    duration_us    BIGINT NOT NULL,
    tier           TEXT   NOT NULL,
    lines          TEXT   NOT NULL,
    PRIMARY KEY (request, number)
) PARTITION BY RANGE (request);
COMMENT ON TABLE attempts IS 'One row per upstream call, numbered from 1 within its request.';
COMMENT ON COLUMN attempts.class IS 'Backend class: frontier, cheap, local, batch.';
COMMENT ON COLUMN attempts.tier IS 'The service tier that was served.';
COMMENT ON COLUMN attempts.lines IS 'JSON: [{"item": token class or kind of piece, "quantity": n, "rate": pico-dollars each, "amount": nano-dollars}]. The amounts are the steps of the running total, so that they add up to charge to the nano-dollar.';
CREATE INDEX attempts_started ON attempts USING brin (started_us);
CREATE TABLE attempts_other PARTITION OF attempts DEFAULT;

CREATE TABLE hourly (
    hour_us          BIGINT NOT NULL,
    org              TEXT   NOT NULL,
    team             TEXT   NOT NULL,
    workflow         TEXT   NOT NULL,
    key              TEXT   NOT NULL,
    provider         TEXT   NOT NULL,
    model            TEXT   NOT NULL,
    class            TEXT   NOT NULL,
    origin           TEXT   NOT NULL,
    tier             TEXT   NOT NULL,
    value            TEXT   NOT NULL,
    requests         BIGINT NOT NULL,
    refused          BIGINT NOT NULL,
    attempts         BIGINT NOT NULL,
    charge           BIGINT NOT NULL,
    cancelled_charge BIGINT NOT NULL,
    failed_charge    BIGINT NOT NULL,
    input_tokens     BIGINT NOT NULL,
    cached_tokens    BIGINT NOT NULL,
    output_tokens    BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    PRIMARY KEY (hour_us, org, team, workflow, key, provider, model, class, origin, tier, value)
);
COMMENT ON TABLE hourly IS 'Spend and tokens by the UTC hour in which requests arrived: what dashboards read, kept when raw rows are not. Written in the transaction that writes the rows, so that it always sums to them.';
COMMENT ON COLUMN hourly.requests IS 'Requests whose last attempt was this; those without any are under the empty provider.';
COMMENT ON COLUMN hourly.cancelled_charge IS 'The part of charge that cancelled attempts cost.';
COMMENT ON COLUMN hourly.failed_charge IS 'The part of charge that attempts cost which neither answered nor were cancelled.';

CREATE TABLE budgets (
    id                TEXT    NOT NULL PRIMARY KEY,
    org               TEXT    NOT NULL,
    team              TEXT    NOT NULL,
    workflow          TEXT    NOT NULL,
    key               TEXT    NOT NULL,
    amount            BIGINT  NOT NULL,
    period            TEXT    NOT NULL,
    zone              TEXT    NOT NULL,
    enforcement       TEXT    NOT NULL,
    thresholds        TEXT    NOT NULL,
    scope             TEXT    NOT NULL,
    increase          BIGINT  NOT NULL,
    increase_until_us BIGINT  NOT NULL,
    source            TEXT    NOT NULL,
    retired           BOOLEAN NOT NULL,
    changed_us        BIGINT  NOT NULL
);
COMMENT ON TABLE budgets IS 'A limit per calendar window on one account of the tree org, team, workflow, key.';
COMMENT ON COLUMN budgets.source IS 'config: from a configuration file, which has the last word at each start; api: made by the admin API.';
COMMENT ON COLUMN budgets.thresholds IS 'JSON: percent of the limit, each raising one alert per window.';
COMMENT ON COLUMN budgets.scope IS 'JSON: models, classes, tags; empty lists mean all traffic.';

CREATE TABLE budget_windows (
    budget            TEXT   NOT NULL,
    starts_us         BIGINT NOT NULL,
    ends_us           BIGINT NOT NULL,
    amount            BIGINT NOT NULL,
    increase          BIGINT NOT NULL,
    increase_until_us BIGINT NOT NULL,
    spent             BIGINT NOT NULL,
    leased            BIGINT NOT NULL,
    last_grant        BIGINT NOT NULL,
    PRIMARY KEY (budget, starts_us)
) WITH (fillfactor = 50);
COMMENT ON TABLE budget_windows IS 'A budget in one of its windows. spent + leased never exceeds the limit by a grant; a provider that bills more than was held can.';
COMMENT ON COLUMN budget_windows.leased IS 'With nodes: the sum over leases of what was taken and is not yet used.';

CREATE TABLE nodes (
    node         TEXT    NOT NULL PRIMARY KEY,
    started_us   BIGINT  NOT NULL,
    heartbeat_us BIGINT  NOT NULL,
    lapsed       BOOLEAN NOT NULL
);
COMMENT ON TABLE nodes IS 'Gateway processes, each with a journal of its own. heartbeat_us is by the clock of the database.';
COMMENT ON COLUMN nodes.lapsed IS 'Given up: what it had leased counts as spent until its journal says otherwise.';

CREATE TABLE leases (
    node        TEXT   NOT NULL,
    budget      TEXT   NOT NULL,
    starts_us   BIGINT NOT NULL,
    taken       BIGINT NOT NULL,
    used        BIGINT NOT NULL,
    written_off BIGINT NOT NULL,
    PRIMARY KEY (node, budget, starts_us)
) WITH (fillfactor = 50);
COMMENT ON TABLE leases IS 'The slice of a budget window that a node spends from without asking: taken in all, less what it gave back; used: what it has posted.';

CREATE TABLE alerts (
    budget    TEXT   NOT NULL,
    starts_us BIGINT NOT NULL,
    threshold BIGINT NOT NULL,
    spent     BIGINT NOT NULL,
    amount    BIGINT NOT NULL,
    raised_us BIGINT NOT NULL,
    PRIMARY KEY (budget, starts_us, threshold)
);
COMMENT ON TABLE alerts IS 'Thresholds that were passed, once per budget, window and threshold.';

CREATE TABLE audit (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_us   BIGINT NOT NULL,
    actor   TEXT   NOT NULL,
    reason  TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    before  TEXT,
    after   TEXT
);
COMMENT ON TABLE audit IS 'Who changed what, when and why, with JSON before and after. Nodes read definitions again when it grows.';

CREATE TABLE keys (
    hash       BYTEA   NOT NULL PRIMARY KEY,
    org        TEXT    NOT NULL,
    team       TEXT    NOT NULL,
    workflow   TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    hint       TEXT    NOT NULL,
    models     TEXT    NOT NULL,
    classes    TEXT    NOT NULL,
    networks   TEXT    NOT NULL,
    created_us BIGINT  NOT NULL,
    expires_us BIGINT  NOT NULL,
    revoked    BOOLEAN NOT NULL
);
COMMENT ON TABLE keys IS 'Gateway keys by SHA-256; the key itself is shown once, when it is made.';
