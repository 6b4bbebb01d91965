-- What finance reads: views with stable names in a schema of their own. Amounts are US dollars as exact decimals, times are
-- timestamps with a zone, absent levels of an account are NULL. Tables of the ledger may change; these views do not, but for
-- columns added at the end. Functions take the moment as of which they speak; the view beside each speaks as of now.

CREATE SCHEMA finance;
COMMENT ON SCHEMA finance IS 'Stable views over the ledger, for dashboards, alerts and exports. Read only.';

-- Helpers: exact dollars, and a moment from microseconds.
CREATE FUNCTION finance.dollars(nanos NUMERIC) RETURNS NUMERIC LANGUAGE SQL IMMUTABLE PARALLEL SAFE
    RETURN nanos / 1000000000;
COMMENT ON FUNCTION finance.dollars IS 'Nano-dollars as dollars; a division by a power of ten is exact.';
CREATE FUNCTION finance.moment(us BIGINT) RETURNS TIMESTAMPTZ LANGUAGE SQL IMMUTABLE PARALLEL SAFE
    RETURN TIMESTAMPTZ 'epoch' + us * INTERVAL '1 microsecond';
CREATE FUNCTION finance.micros(at TIMESTAMPTZ) RETURNS BIGINT LANGUAGE SQL IMMUTABLE PARALLEL SAFE
    RETURN (extract(epoch FROM at) * 1000000)::BIGINT;
-- As the gateway shows accounts: acme/search/nightly/ci, with - for an absent level.
CREATE FUNCTION finance.account(org TEXT, team TEXT, workflow TEXT, key TEXT) RETURNS TEXT LANGUAGE SQL IMMUTABLE PARALLEL SAFE
    RETURN rtrim(concat_ws('/', coalesce(nullif(org, ''), '-'), coalesce(nullif(team, ''), '-'),
        coalesce(nullif(workflow, ''), '-'), coalesce(nullif(key, ''), '-')), '/-');

CREATE VIEW finance.spend_hourly AS
SELECT finance.moment(hour_us) AS hour,
    nullif(org, '') AS org, nullif(team, '') AS team, nullif(workflow, '') AS workflow, nullif(key, '') AS key,
    nullif(provider, '') AS provider, nullif(model, '') AS model, nullif(class, '') AS backend_class,
    nullif(tier, '') AS service_tier, value AS value_tier, origin,
    requests, refused, attempts,
    finance.dollars(charge) AS cost, finance.dollars(cancelled_charge) AS cancelled_cost,
    finance.dollars(failed_charge) AS failed_cost,
    input_tokens, cached_tokens, output_tokens, reasoning_tokens
FROM hourly;
COMMENT ON VIEW finance.spend_hourly IS 'Spend, tokens and counts by the UTC hour in which requests arrived, account, target and tiers. Kept when raw rows are not.';
COMMENT ON COLUMN finance.spend_hourly.cancelled_cost IS 'The part of cost that cancelled calls cost: nobody read all of their answers.';
COMMENT ON COLUMN finance.spend_hourly.failed_cost IS 'The part of cost that calls cost which neither answered nor were cancelled.';

CREATE VIEW finance.spend_daily AS
SELECT date_trunc('day', hour, 'UTC') AS day, org, team, workflow, key, provider, model, backend_class, service_tier,
    value_tier, origin, sum(requests)::BIGINT AS requests, sum(refused)::BIGINT AS refused,
    sum(attempts)::BIGINT AS attempts, sum(cost) AS cost, sum(cancelled_cost) AS cancelled_cost,
    sum(failed_cost) AS failed_cost, sum(input_tokens)::BIGINT AS input_tokens,
    sum(cached_tokens)::BIGINT AS cached_tokens, sum(output_tokens)::BIGINT AS output_tokens,
    sum(reasoning_tokens)::BIGINT AS reasoning_tokens
FROM finance.spend_hourly
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11;
COMMENT ON VIEW finance.spend_daily IS 'spend_hourly by UTC day.';

CREATE VIEW finance.charges AS
SELECT a.request, a.number AS attempt, finance.moment(r.started_us) AS started, r.org, r.team, r.workflow, r.key,
    a.deployment, a.provider, a.model, a.class AS backend_class, a.tier AS service_tier, r.value AS value_tier, r.origin,
    a.outcome, a.usage_source, a.price_version, line.ordinality AS line, line.item, line.quantity,
    line.rate::NUMERIC / 1000000000000 AS unit_price,
    finance.dollars(CASE WHEN line.ordinality IS NULL THEN a.charge ELSE line.amount END) AS cost
FROM attempts a
JOIN requests r ON r.id = a.request
LEFT JOIN LATERAL (
    SELECT ordinality, value ->> 'item' AS item, (value ->> 'quantity')::BIGINT AS quantity,
        (value ->> 'rate')::BIGINT AS rate, (value ->> 'amount')::BIGINT AS amount
    FROM jsonb_array_elements(a.lines::JSONB) WITH ORDINALITY
) line ON TRUE
WHERE a.charge <> 0 OR line.ordinality IS NOT NULL;
COMMENT ON VIEW finance.charges IS 'Every line of every charge: item, quantity, price and amount. The lines of a call add up to its charge to the nano-dollar. A charge without lines (a ceiling, or what was held when a gateway died) has one row without an item. Raw rows: ask for a range of started.';
COMMENT ON COLUMN finance.charges.unit_price IS 'Dollars for one token or piece.';

CREATE VIEW finance.budget_status AS
SELECT w.budget, nullif(b.org, '') AS org, nullif(b.team, '') AS team, nullif(b.workflow, '') AS workflow,
    nullif(b.key, '') AS key, finance.account(b.org, b.team, b.workflow, b.key) AS account,
    b.period, b.enforcement, finance.moment(w.starts_us) AS window_start,
    CASE WHEN w.ends_us < 253402300800000000 THEN finance.moment(w.ends_us) END AS window_end,
    finance.dollars(w.amount + CASE WHEN w.increase_until_us > finance.micros(now()) THEN w.increase ELSE 0 END) AS amount,
    finance.dollars(w.spent) AS spent, finance.dollars(w.leased) AS leased, b.retired
FROM budget_windows w
JOIN budgets b ON b.id = w.budget;
COMMENT ON VIEW finance.budget_status IS 'Budgets in their windows: the limit (with an increase that still holds), what is spent, and what gateways hold of the rest. window_end is NULL where a budget never resets.';

-- The cost of an account's traffic by UTC day, as far as a budget's scope can be told from the roll-up.
CREATE FUNCTION finance.in_scope(scope TEXT, model TEXT, class TEXT) RETURNS BOOLEAN LANGUAGE SQL IMMUTABLE PARALLEL SAFE
    RETURN (jsonb_array_length(coalesce(scope::JSONB -> 'models', '[]')) = 0 OR EXISTS (
            SELECT FROM jsonb_array_elements_text(scope::JSONB -> 'models') AS pattern
            WHERE CASE WHEN right(pattern, 1) = '*' THEN starts_with(model, left(pattern, -1)) ELSE model = pattern END))
        AND (jsonb_array_length(coalesce(scope::JSONB -> 'classes', '[]')) = 0 OR scope::JSONB -> 'classes' ? class);

CREATE FUNCTION finance.budget_forecasts(as_of TIMESTAMPTZ) RETURNS TABLE (
    budget TEXT, account TEXT, window_start TIMESTAMPTZ, window_end TIMESTAMPTZ, amount NUMERIC, spent NUMERIC,
    days_of_history BIGINT, p50 NUMERIC, p90 NUMERIC, exhausted_p50 TIMESTAMPTZ
) LANGUAGE SQL STABLE AS $$
    WITH windows AS (
        SELECT s.*, b.org AS o, b.team AS t, b.workflow AS w, b.key AS k, b.scope,
            date_trunc('day', as_of, 'UTC') AS today
        FROM finance.budget_status s JOIN budgets b ON b.id = s.budget
        WHERE s.window_end IS NOT NULL AND s.window_start <= as_of AND as_of < s.window_end AND NOT s.retired
            -- Labels are not in the roll-up: what such a budget will spend cannot be told from it.
            AND jsonb_array_length(coalesce(b.scope::JSONB -> 'tags', '[]')) = 0
    ), daily AS (
        SELECT date_trunc('day', finance.moment(hour_us), 'UTC') AS day, org, team, workflow, key, model, class, sum(charge) AS charge
        FROM hourly
        WHERE hour_us >= finance.micros(date_trunc('day', as_of, 'UTC') - INTERVAL '28 days')
            AND hour_us < finance.micros(date_trunc('day', as_of, 'UTC'))
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ), scoped AS (
        SELECT v.budget, v.window_start, d.day, sum(d.charge) AS charge
        FROM windows v
        JOIN daily d ON v.o = d.org AND v.t IN ('', d.team) AND v.w IN ('', d.workflow) AND v.k IN ('', d.key)
            AND finance.in_scope(v.scope, d.model, d.class)
        GROUP BY 1, 2, 3
    ), days AS (
        -- Four weeks of whole days; those without traffic count, from the first that had some.
        SELECT v.budget, v.window_start, each.day, coalesce(s.charge, 0)::DOUBLE PRECISION / 1e9 AS cost
        FROM windows v
        CROSS JOIN LATERAL generate_series(greatest(v.today - INTERVAL '28 days', (SELECT min(daily.day) FROM daily)),
            v.today - INTERVAL '1 day', INTERVAL '1 day') AS each (day)
        LEFT JOIN scoped s ON s.budget = v.budget AND s.window_start = v.window_start AND s.day = each.day
    ), weekdays AS (
        SELECT d.budget, d.window_start, extract(isodow FROM d.day AT TIME ZONE 'UTC') AS dow, avg(d.cost) AS mean
        FROM days d GROUP BY 1, 2, 3
    ), spread AS (
        -- How far a day is off its weekday's mean, over all days.
        SELECT d.budget, d.window_start, count(*) AS days, avg(d.cost) AS mean,
            coalesce(sqrt(sum((d.cost - m.mean) ^ 2) / nullif(count(*) - count(DISTINCT m.dow), 0)), stddev_samp(d.cost), 0) AS deviation
        FROM days d
        JOIN weekdays m ON m.budget = d.budget AND m.window_start = d.window_start
            AND m.dow = extract(isodow FROM d.day AT TIME ZONE 'UTC')
        GROUP BY 1, 2
    ), rest AS (
        -- Each day that is left, today's rest and the last day's beginning in proportion.
        SELECT v.budget, v.window_start, each.day,
            extract(epoch FROM least(v.window_end, each.day + INTERVAL '1 day') - greatest(as_of, each.day)) / 86400 AS part,
            coalesce(m.mean, s.mean, 0) AS mean, coalesce(s.deviation, 0) AS deviation
        FROM windows v
        CROSS JOIN LATERAL generate_series(v.today, v.window_end - INTERVAL '1 microsecond', INTERVAL '1 day') AS each (day)
        LEFT JOIN spread s ON s.budget = v.budget AND s.window_start = v.window_start
        LEFT JOIN weekdays m ON m.budget = v.budget AND m.window_start = v.window_start
            AND m.dow = extract(isodow FROM each.day AT TIME ZONE 'UTC')
    ), running AS (
        SELECT r.*, sum(part * mean) OVER (PARTITION BY r.budget, r.window_start ORDER BY day) AS until FROM rest r
    ), sums AS (
        SELECT r.budget, r.window_start, sum(part * mean) AS expected, sqrt(sum(part * deviation ^ 2)) AS deviation
        FROM rest r GROUP BY 1, 2
    )
    SELECT v.budget, v.account, v.window_start, v.window_end, v.amount, v.spent, coalesce(s.days, 0),
        round(v.spent + sums.expected::NUMERIC, 9),
        -- The 90th percentile of a normal distribution.
        round(v.spent + (sums.expected + 1.2815515655446004 * sums.deviation)::NUMERIC, 9),
        CASE WHEN v.spent >= v.amount THEN as_of ELSE (
            SELECT greatest(as_of, r.day) + r.part * INTERVAL '1 day'
                * (1 - (r.until - (v.amount - v.spent)::DOUBLE PRECISION) / nullif(r.part * r.mean, 0))
            FROM running r
            WHERE r.budget = v.budget AND r.window_start = v.window_start AND r.until >= (v.amount - v.spent)::DOUBLE PRECISION
            ORDER BY r.day LIMIT 1
        ) END
    FROM windows v
    JOIN sums ON sums.budget = v.budget AND sums.window_start = v.window_start
    LEFT JOIN spread s ON s.budget = v.budget AND s.window_start = v.window_start
$$;
COMMENT ON FUNCTION finance.budget_forecasts IS 'What each budget will have spent at the end of its window: what is spent, and for every day that is left the mean of that weekday over the last four weeks. p90 adds the spread of days around their weekday. exhausted_p50: when the amount is used up at that pace; NULL: not in this window.';

CREATE VIEW finance.budget_forecast AS SELECT * FROM finance.budget_forecasts(now());
COMMENT ON VIEW finance.budget_forecast IS 'budget_forecasts as of now.';

-- Cost over the last so many hours by the roll-up, the oldest hour in proportion.
CREATE FUNCTION finance.burn_rates(as_of TIMESTAMPTZ) RETURNS TABLE (
    budget TEXT, account TEXT, window_start TIMESTAMPTZ, amount NUMERIC, spent NUMERIC,
    rate_5m DOUBLE PRECISION, rate_30m DOUBLE PRECISION, rate_1h DOUBLE PRECISION, rate_6h DOUBLE PRECISION,
    rate_3d DOUBLE PRECISION, severity TEXT
) LANGUAGE SQL STABLE AS $$
    WITH windows AS (
        SELECT s.*, b.org AS o, b.team AS t, b.workflow AS w, b.key AS k, b.scope,
            -- Nano-dollars an hour at which the amount lasts exactly to the window's end.
            s.amount * 1000000000 / extract(epoch FROM s.window_end - s.window_start) * 3600 AS pace
        FROM finance.budget_status s JOIN budgets b ON b.id = s.budget
        WHERE s.window_end IS NOT NULL AND s.window_start <= as_of AND as_of < s.window_end AND NOT s.retired
            AND s.amount > 0 AND jsonb_array_length(coalesce(b.scope::JSONB -> 'tags', '[]')) = 0
    ), long AS (
        SELECT v.budget, v.window_start, hours,
            sum(h.charge * least(1, (h.hour_us + 3600000000 - (finance.micros(as_of) - hours * 3600000000))::NUMERIC / 3600000000)) / hours AS pace
        FROM windows v CROSS JOIN (VALUES (1), (6), (72)) AS lookback (hours)
        JOIN hourly h ON h.hour_us > finance.micros(as_of) - (hours + 1) * 3600000000 AND h.hour_us <= finance.micros(as_of)
            AND v.o = h.org AND v.t IN ('', h.team) AND v.w IN ('', h.workflow) AND v.k IN ('', h.key)
            AND finance.in_scope(v.scope, h.model, h.class)
        GROUP BY 1, 2, 3
    ), short AS (
        -- Shorter than the roll-up's hour: from raw rows, by when they were settled.
        SELECT v.budget, v.window_start, minutes, sum(a.charge) * 60 / minutes AS pace
        FROM windows v CROSS JOIN (VALUES (5), (30)) AS lookback (minutes)
        JOIN requests r ON r.started_us > finance.micros(as_of - INTERVAL '2 hours') AND r.started_us <= finance.micros(as_of)
            AND r.settled_us > finance.micros(as_of) - minutes * 60000000 AND r.settled_us <= finance.micros(as_of)
            AND v.o = r.org AND v.t IN ('', coalesce(r.team, '')) AND v.w IN ('', coalesce(r.workflow, '')) AND v.k IN ('', coalesce(r.key, ''))
        JOIN attempts a ON a.request = r.id AND finance.in_scope(v.scope, a.model, a.class)
        GROUP BY 1, 2, 3
    ), rates AS (
        SELECT v.budget, v.account, v.window_start, v.amount, v.spent,
            coalesce((SELECT s.pace FROM short s WHERE (s.budget, s.window_start, minutes) = (v.budget, v.window_start, 5)), 0) / v.pace AS m5,
            coalesce((SELECT s.pace FROM short s WHERE (s.budget, s.window_start, minutes) = (v.budget, v.window_start, 30)), 0) / v.pace AS m30,
            coalesce((SELECT l.pace FROM long l WHERE (l.budget, l.window_start, hours) = (v.budget, v.window_start, 1)), 0) / v.pace AS h1,
            coalesce((SELECT l.pace FROM long l WHERE (l.budget, l.window_start, hours) = (v.budget, v.window_start, 6)), 0) / v.pace AS h6,
            coalesce((SELECT l.pace FROM long l WHERE (l.budget, l.window_start, hours) = (v.budget, v.window_start, 72)), 0) / v.pace AS d3
        FROM windows v
    )
    SELECT budget, account, window_start, amount, spent, m5::DOUBLE PRECISION, m30::DOUBLE PRECISION, h1::DOUBLE PRECISION,
        h6::DOUBLE PRECISION, d3::DOUBLE PRECISION,
        CASE WHEN h1 > 14.4 AND m5 > 14.4 THEN 'page' WHEN h6 > 6 AND m30 > 6 THEN 'page'
            WHEN d3 > 1 AND h6 > 1 THEN 'ticket' ELSE 'none' END
    FROM rates
$$;
COMMENT ON FUNCTION finance.burn_rates IS 'How many times faster than its amount allows each budget is being spent, over 5 and 30 minutes, 1 and 6 hours and 3 days. severity: page above 14.4 over 1 h and 5 min, or above 6 over 6 h and 30 min; ticket above 1 over 3 d and 6 h. The short look-back ends an alert soon after its cause.';

CREATE VIEW finance.burn_rate AS SELECT * FROM finance.burn_rates(now());
COMMENT ON VIEW finance.burn_rate IS 'burn_rates as of now.';

CREATE VIEW finance.unit_price_daily AS
SELECT date_trunc('day', started, 'UTC') AS day, provider, model, service_tier, item, sum(quantity)::BIGINT AS quantity,
    sum(cost) AS cost, sum(cost) * 1000000 / nullif(sum(quantity), 0) AS dollars_per_million
FROM finance.charges
WHERE item IS NOT NULL
GROUP BY 1, 2, 3, 4, 5;
COMMENT ON VIEW finance.unit_price_daily IS 'What a million tokens or pieces really cost, by day, model, tier and item. From raw rows: ask for a range of day.';
