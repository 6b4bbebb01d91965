-- What decisions depended on, for replays; what callers said of answers; how often answers were asked for again.

CREATE TABLE decisions (
    request    UUID   NOT NULL PRIMARY KEY,
    started_us BIGINT NOT NULL,
    decision   TEXT   NOT NULL
) PARTITION BY RANGE (request);
COMMENT ON TABLE decisions IS 'What the decision on a request depended on, where `store.decisions` is on: what `tollgate policy replay --from-ledger` rules on again. Kept as long as the request.';
COMMENT ON COLUMN decisions.decision IS 'JSON: facts, account, offers, estimates, envelope, seed and the ruling. Numbers and declared names, never prompt text.';
CREATE TABLE decisions_other PARTITION OF decisions DEFAULT;

CREATE TABLE outcomes (
    request      UUID    NOT NULL PRIMARY KEY,
    told_us      BIGINT  NOT NULL,
    org          TEXT    NOT NULL,
    workflow     TEXT    NOT NULL,
    deployment   TEXT    NOT NULL,
    success      BOOLEAN NOT NULL,
    value        BIGINT  NOT NULL,
    stated       BOOLEAN NOT NULL,
    believed_ppm BIGINT  NOT NULL,
    note         TEXT,
    node         TEXT    NOT NULL
);
COMMENT ON TABLE outcomes IS 'What callers said of answers, the first word on each request. Kept as long as requests are, by when it was told.';
COMMENT ON COLUMN outcomes.value IS 'Nano-dollars that it was worth: as the caller states, else by the policy: its value, or, for a wrong answer, its cost, below 0.';
COMMENT ON COLUMN outcomes.stated IS 'The value is the caller''s own figure.';
COMMENT ON COLUMN outcomes.believed_ppm IS 'P(success) that was believed before outcomes had their word, in parts per million.';
COMMENT ON COLUMN outcomes.note IS 'The caller''s own words.';
CREATE INDEX outcomes_told ON outcomes (told_us);

CREATE TABLE answered (
    day_us      BIGINT NOT NULL,
    org         TEXT   NOT NULL,
    workflow    TEXT   NOT NULL,
    deployment  TEXT   NOT NULL,
    calls       BIGINT NOT NULL,
    retries     BIGINT NOT NULL,
    escalations BIGINT NOT NULL,
    PRIMARY KEY (day_us, org, workflow, deployment)
);
COMMENT ON TABLE answered IS 'Answers by UTC day, workflow and deployment, and how many were asked for again: there (retries), or elsewhere (escalations).';

CREATE VIEW finance.visible_share AS
SELECT date_trunc('day', finance.moment(hour_us), 'UTC') AS day, nullif(org, '') AS org, nullif(team, '') AS team,
    nullif(workflow, '') AS workflow, nullif(model, '') AS model,
    sum(output_tokens)::BIGINT AS visible_tokens, sum(reasoning_tokens)::BIGINT AS reasoning_tokens,
    sum(output_tokens) / nullif(sum(output_tokens) + sum(reasoning_tokens), 0) AS visible_share
FROM hourly
WHERE output_tokens + reasoning_tokens > 0
GROUP BY 1, 2, 3, 4, 5;
COMMENT ON VIEW finance.visible_share IS 'Of the output tokens that were paid for, the share that a caller could read; the rest was reasoning. By UTC day, account, workflow and model.';

CREATE VIEW finance.realised_value AS
SELECT date_trunc('day', finance.moment(o.told_us), 'UTC') AS day, o.org, nullif(o.workflow, '') AS workflow, o.deployment,
    count(*) AS outcomes, count(*) FILTER (WHERE o.success) AS successes,
    finance.dollars(sum(o.value)) AS value, finance.dollars(sum(coalesce(r.charge, 0))) AS cost
FROM outcomes o
LEFT JOIN requests r ON r.id = o.request
GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW finance.realised_value IS 'What answers turned out to be worth and what they cost, for requests whose outcome was told: by the caller''s own figure, else by the policy''s.';

CREATE VIEW finance.outcomes AS
SELECT request, finance.moment(told_us) AS told, org, nullif(workflow, '') AS workflow, deployment, success,
    finance.dollars(value) AS value, stated, believed_ppm / 1000000.0 AS believed, note
FROM outcomes;
COMMENT ON VIEW finance.outcomes IS 'What callers said of answers.';

CREATE VIEW finance.retries AS
SELECT finance.moment(day_us) AS day, org, nullif(workflow, '') AS workflow, deployment, calls, retries, escalations,
    (retries + escalations)::NUMERIC / nullif(calls, 0) AS asked_again_share
FROM answered;
COMMENT ON VIEW finance.retries IS 'How many answers were asked for again within their run, by the deployment that gave them: what a cheap model that has to be asked twice really costs.';
