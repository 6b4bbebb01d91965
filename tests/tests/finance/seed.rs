//! 100,000 requests that follow from their number alone: once as SQL, once as values. The two share constants and nothing else.

pub(crate) const HOUR_US: i64 = 3_600_000_000;
/// 2026-11-20T15:30:00Z: the moment as of which everything is asked.
pub(crate) const AS_OF_US: i64 = 1_795_188_600_000_000;
const REQUESTS: i64 = 100_000;
/// 40 days in all.
const STEP_US: i64 = 34_560_000;
const SETTLED_AFTER_US: i64 = 2_000_000;

/// A request and its call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) started_us: i64,
    pub(crate) org: &'static str,
    pub(crate) team: String,
    /// Empty: none.
    pub(crate) workflow: String,
    pub(crate) key: String,
    pub(crate) refused: bool,
    pub(crate) provider: String,
    pub(crate) model: String,
    pub(crate) class: &'static str,
    pub(crate) tier: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) charge: i64,
    /// Item, quantity, amount.
    pub(crate) lines: Vec<(&'static str, i64, i64)>,
}

impl Call {
    pub(crate) fn hour_us(&self) -> i64 {
        self.started_us - self.started_us.rem_euclid(HOUR_US)
    }

    pub(crate) fn settled_us(&self) -> i64 {
        self.started_us + SETTLED_AFTER_US
    }

    fn number(number: i64) -> Self {
        let started_us = AS_OF_US - (REQUESTS - number) * STEP_US;
        // 1970-01-01 was a Thursday: 0 is Monday.
        let weekday = (started_us.div_euclid(24 * HOUR_US) + 3).rem_euclid(7);
        let busy = if weekday >= 5 { 1 } else { 3 };
        let refused = number % 50 == 49;
        let (input, output) = (100 + number * 7919 % 1900, (10 + number * 104_729 % 500) * busy);
        let price = 1 + number % 6;
        let first = (input * 150_000 * price + 999) / 1000;
        let charge = (input * 150_000 * price + output * 600_000 * price + 999) / 1000;
        let lines = match number % 1000 {
            500 => Vec::new(),
            _ => vec![("input", input, first), ("output", output, charge - first)],
        };
        Self {
            started_us,
            org: if number % 10 == 0 { "globex" } else { "acme" },
            team: format!("t{}", number % 5),
            workflow: if number % 3 == 0 {
                String::new()
            } else {
                format!("w{}", number % 4)
            },
            key: format!("k{}", number % 23),
            refused,
            provider: format!("p{}", number % 3),
            model: format!("m{}", number % 6),
            class: ["frontier", "cheap", "local", "batch"][(number % 4) as usize],
            tier: match number % 7 {
                0 => "flex",
                1 => "priority",
                _ => "standard",
            },
            outcome: match (refused, number % 17, number % 29) {
                (true, ..) => "refused",
                (_, 0, _) => "cancelled",
                (_, _, 0) => "failed",
                _ => "answered",
            },
            charge: if refused { 0 } else { charge },
            lines: if refused { Vec::new() } else { lines },
        }
    }
}

pub(crate) fn calls() -> impl Iterator<Item = Call> {
    (0..REQUESTS).map(Call::number)
}

/// The same traffic, going on until then.
pub(crate) fn calls_until(end_us: i64) -> impl Iterator<Item = Call> {
    (0..)
        .map(Call::number)
        .take_while(move |call| call.started_us < end_us)
}

/// The seed as SQL.
pub(crate) fn statements() -> Vec<String> {
    let numbers = format!(
        "CREATE TEMP VIEW calls AS SELECT i, started, (10 + i * 104729 % 500) * CASE WHEN extract(isodow FROM \
             to_timestamp(started / 1000000) AT TIME ZONE 'UTC') >= 6 THEN 1 ELSE 3 END AS output, 100 + i * 7919 % 1900 AS input, \
             1 + i % 6 AS price, i % 50 = 49 AS refused, \
             (lpad(to_hex(started / 1000), 12, '0') || '70008000' || lpad(to_hex(i), 12, '0'))::UUID AS id \
         FROM (SELECT i, {AS_OF_US} - ({REQUESTS} - i) * {STEP_US} AS started FROM generate_series(0::BIGINT, {}) AS i) numbered; ",
        REQUESTS - 1
    );
    let requests = format!(
        "{numbers} INSERT INTO requests (id, started_us, settled_us, org, team, workflow, key, dialect, surface, model_asked, stream, \
             value, latency, policy_version, ending, phase, refusal, status, body_read_us, decided_us, upstream_headers_us, \
             first_byte_us, total_us, charge, node, origin, held, late) \
         SELECT id, started, started + {SETTLED_AFTER_US}, CASE WHEN i % 10 = 0 THEN 'globex' ELSE 'acme' END, 't' || i % 5, \
             CASE WHEN i % 3 = 0 THEN NULL ELSE 'w' || i % 4 END, 'k' || i % 23, 'openai_chat', 'chat_completions', 'auto', true, \
             'standard', 'standard', 'p', CASE WHEN refused THEN 'refused' ELSE 'completed' END, 'stream', \
             CASE WHEN refused THEN 'budget_exceeded' END, 200, 1, 2, 3, 4, {SETTLED_AFTER_US}, \
             CASE WHEN refused THEN 0 ELSE (input * 150000 * price + output * 600000 * price + 999) / 1000 END, 'n', 'live', 0, false \
         FROM calls"
    );
    let attempts = format!(
        "{numbers} INSERT INTO attempts SELECT id, 1, 'd', 'p' || i % 3, 'm' || i % 6, (ARRAY['frontier','cheap','local','batch'])[i % 4 + 1], \
             CASE WHEN i % 17 = 0 THEN 'cancelled' WHEN i % 29 = 0 THEN 'failed' ELSE 'answered' END, 200, 'reported', \
             input, 0, 0, 0, output, 0, 0, 0, 0, 0, 'v1', charge, started, {SETTLED_AFTER_US}, \
             CASE i % 7 WHEN 0 THEN 'flex' WHEN 1 THEN 'priority' ELSE 'standard' END, \
             CASE WHEN i % 1000 = 500 THEN '[]' ELSE json_build_array( \
                 json_build_object('item', 'input', 'quantity', input, 'rate', 150000 * price, 'amount', first), \
                 json_build_object('item', 'output', 'quantity', output, 'rate', 600000 * price, 'amount', charge - first))::TEXT END \
         FROM (SELECT *, (input * 150000 * price + 999) / 1000 AS first, \
                   (input * 150000 * price + output * 600000 * price + 999) / 1000 AS charge FROM calls WHERE NOT refused) charged"
    );
    vec![requests, attempts, HOURLY.to_owned(), "ANALYZE".to_owned()]
}

/// As the ledger's writer rolls up.
const HOURLY: &str = "INSERT INTO hourly \
    SELECT r.started_us - r.started_us % 3600000000, r.org, r.team, coalesce(r.workflow, ''), r.key, coalesce(a.provider, ''), \
        coalesce(a.model, ''), coalesce(a.class, ''), r.origin, coalesce(a.tier, ''), r.value, count(*), \
        count(*) FILTER (WHERE r.ending = 'refused'), count(a.number), coalesce(sum(a.charge), 0), \
        coalesce(sum(a.charge) FILTER (WHERE a.outcome = 'cancelled'), 0), \
        coalesce(sum(a.charge) FILTER (WHERE a.outcome NOT IN ('cancelled', 'answered')), 0), \
        coalesce(sum(a.input), 0), 0, coalesce(sum(a.output), 0), 0 \
    FROM requests r LEFT JOIN attempts a ON a.request = r.id GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11";

/// Three requests a minute ago that cost $200 each.
pub(crate) fn burst() -> String {
    let (started, hour) = (AS_OF_US - 60_000_000, AS_OF_US - AS_OF_US % HOUR_US);
    format!(
        "INSERT INTO requests SELECT ('ffffffff-0000-7000-8000-00000000000' || i)::UUID, {started}, {started} + 1, org, team, workflow, key, \
             dialect, surface, model_asked, stream, value, latency, thinking, policy_version, ending, phase, refusal, status, body_read_us, \
             decided_us, upstream_headers_us, first_byte_us, total_us, 200000000000, node, origin, held, late \
         FROM requests, generate_series(1, 3) AS i WHERE started_us = {} - {STEP_US}; \
         INSERT INTO attempts SELECT ('ffffffff-0000-7000-8000-00000000000' || i)::UUID, number, deployment, provider, model, class, outcome, \
             status, usage_source, input, cache_read, cache_write, cache_write_1h, output, reasoning, audio_input, audio_output, image_input, \
             image_output, price_version, 200000000000, started_us, duration_us, tier, '[]' \
         FROM attempts, generate_series(1, 3) AS i WHERE started_us = {} - {STEP_US} * 2; \
         UPDATE hourly SET charge = charge + 600000000000 WHERE ctid = \
             (SELECT ctid FROM hourly WHERE hour_us = {hour} AND org = 'acme' AND provider <> '' ORDER BY team, workflow, key LIMIT 1)",
        AS_OF_US, AS_OF_US
    )
}
