//! What finance reads, on a Postgres with 100,000 seeded requests: every query of the dashboard and of the alerts, against
//! numbers that are computed here from the same rows without any SQL.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "finance/seed.rs"]
mod seed;

use seed::{AS_OF_US, Call, HOUR_US, calls};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tests::postgres::Postgres;

const DAY_US: i64 = 24 * HOUR_US;
/// The dashboard's range in this test: the last 30 days.
const FROM_US: i64 = AS_OF_US - 30 * DAY_US;
/// The budgets' window: November 2026.
const WINDOW: (i64, i64) = (1_793_491_200_000_000, 1_796_083_200_000_000);

#[derive(Clone, Debug)]
enum Cell {
    Text(String),
    /// Nano-dollars, compared exactly.
    Money(i128),
    /// Compared to nine digits.
    Number(f64),
    Count(i64),
    /// Whatever it is: checked elsewhere.
    Any,
}

fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into())
}

impl Cell {
    fn is(&self, told: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Text(text) => told == text,
            Self::Count(count) => told == count.to_string(),
            Self::Money(nanos) => exact_nanos(told) == Some(*nanos),
            Self::Number(number) => told
                .parse::<f64>()
                .is_ok_and(|told| (told - number).abs() <= 1e-9 * number.abs().max(1e-9)),
        }
    }
}

/// `None`: not a number, or one with more than nine decimals that are not zero.
fn exact_nanos(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    let nanos = format!("{whole}{fraction:0<9}").parse::<i128>().ok()?;
    (fraction.len() <= 9).then_some(sign * nanos)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(root().join(path)).unwrap()).unwrap()
}

fn moment(us: i64) -> String {
    format!("finance.moment({us})")
}

/// A query with Grafana's words replaced as Grafana replaces them, and `now` by the moment of this test.
fn expanded(sql: &str) -> String {
    let mut sql = sql.replace("${org:sqlstring}", "'acme'");
    while let Some(start) = sql.find("$__timeFilter(") {
        let end = start + sql[start..].find(')').unwrap();
        let column = &sql[start + "$__timeFilter(".len()..end];
        let filter = format!("{column} BETWEEN {} AND {}", moment(FROM_US), moment(AS_OF_US));
        sql.replace_range(start..=end, &filter);
    }
    let now = moment(AS_OF_US);
    let sql = sql.replace("$__timeTo()", &now);
    let sql = sql.replace(
        "FROM finance.budget_forecast ",
        &format!("FROM finance.budget_forecasts({now}) "),
    );
    let sql = sql.replace(
        "FROM finance.burn_rate ",
        &format!("FROM finance.burn_rates({now}) "),
    );
    assert!(!sql.contains('$'), "a word that is not replaced: {sql}");
    sql
}

struct Book {
    postgres: Postgres,
    calls: Vec<Call>,
}

impl Book {
    fn seeded() -> Self {
        let postgres = Postgres::start(&["fsync = off", "synchronous_commit = off"]);
        for migration in ["0001_ledger.sql", "0002_finance.sql"] {
            let sql = std::fs::read_to_string(root().join("migrations").join(migration)).unwrap();
            postgres.query("tollgate", &sql);
        }
        for statement in seed::statements() {
            postgres.query("tollgate", &statement);
        }
        let book = Self {
            postgres,
            calls: calls().collect(),
        };
        for (id, account, scope, amount) in BUDGETS {
            let [org, team, workflow, key] = account;
            let spent: i64 = book
                .in_budget(id)
                .filter(|call| call.started_us >= WINDOW.0)
                .map(|call| call.charge)
                .sum();
            book.postgres.query("tollgate", &format!(
                "INSERT INTO budgets VALUES ('{id}', '{org}', '{team}', '{workflow}', '{key}', {amount}, 'month', 'UTC', 'hard', '[]', \
                 '{scope}', 0, 0, 'config', false, 0); \
                 INSERT INTO budget_windows VALUES ('{id}', {}, {}, {amount}, 0, 0, {spent}, 1000000000, 0)",
                WINDOW.0, WINDOW.1
            ));
        }
        book
    }

    /// Rows as texts.
    fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let out = self
            .postgres
            .query("tollgate", &format!("SET timezone = 'UTC'; {sql}"));
        let rows = out.lines().filter(|line| !line.is_empty());
        rows.map(|row| row.split('|').map(ToOwned::to_owned).collect())
            .collect()
    }

    fn check(&self, what: &str, sql: &str, expected: &[Vec<Cell>]) {
        let told = self.rows(&expanded(sql));
        assert_eq!(
            told.len(),
            expected.len(),
            "{what}: {} rows\n{told:?}",
            told.len()
        );
        for (told, expected) in told.iter().zip(expected) {
            let same =
                told.len() == expected.len() && expected.iter().zip(told).all(|(cell, told)| cell.is(told));
            assert!(same, "{what}: {told:?}, expected {expected:?}");
        }
    }

    /// What the dashboard shows: the organisation that is chosen, in its range by the roll-up's hour.
    fn shown(&self) -> impl Iterator<Item = &Call> {
        let in_range = |call: &&Call| call.hour_us() >= FROM_US && call.hour_us() <= AS_OF_US;
        self.calls
            .iter()
            .filter(in_range)
            .filter(|call| call.org == "acme")
    }

    fn in_budget(&self, id: &str) -> impl Iterator<Item = &Call> {
        let budget = BUDGETS.iter().find(|budget| budget.0 == id).unwrap();
        let ([org, team, ..], models) = (budget.1, budget.2.contains("m1"));
        self.calls.iter().filter(move |call| {
            call.org == org
                && (team.is_empty() || call.team == team)
                && (!models || ["m1", "m2"].contains(&&*call.model))
        })
    }
}

/// Id, account, scope, amount in nano-dollars.
const BUDGETS: [(&str, [&str; 4], &str, i64); 3] = [
    ("acme month", ["acme", "", "", ""], "{}", 150_000_000_000),
    (
        "acme/t1 month",
        ["acme", "t1", "", ""],
        r#"{"models":[],"classes":[],"tags":[]}"#,
        25_000_000_000,
    ),
    (
        "acme month model=m1",
        ["acme", "", "", ""],
        r#"{"models":["m1","m2*"],"classes":[],"tags":[]}"#,
        100_000_000_000,
    ),
];

/// Sums by a name, largest first and then by name, as the dashboard shows them.
fn ranked<'a>(calls: impl Iterator<Item = (String, &'a Call)>) -> Vec<(String, i128, i64, i64)> {
    let mut sums: BTreeMap<String, (i128, i64, i64)> = BTreeMap::new();
    for (name, call) in calls {
        let sum = sums.entry(name).or_default();
        sum.0 += i128::from(call.charge);
        sum.1 += 1;
        sum.2 += i64::from(call.refused);
    }
    let mut ranked: Vec<_> = sums
        .into_iter()
        .map(|(name, sum)| (name, sum.0, sum.1, sum.2))
        .collect();
    ranked.sort_by_key(|(_, cost, ..)| std::cmp::Reverse(*cost));
    ranked
}

fn day_of(us: i64) -> String {
    let date = time(us.div_euclid(DAY_US));
    format!("{date} 00:00:00+00")
}

/// A day since the epoch as a date of the civil calendar.
fn time(days: i64) -> String {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Cost in nano-dollars by UTC day and name, days ascending.
fn by_day<'a>(
    calls: impl Iterator<Item = &'a Call>,
    name: impl Fn(&Call) -> String,
) -> BTreeMap<(i64, String), i128> {
    let mut sums = BTreeMap::new();
    for call in calls {
        *sums
            .entry((call.hour_us().div_euclid(DAY_US), name(call)))
            .or_default() += i128::from(call.charge);
    }
    sums
}

/// What each panel must show; `None`: a panel that this test does not know.
fn expected(book: &Book, title: &str) -> Option<Vec<Vec<Cell>>> {
    let total: i128 = book.shown().map(|call| i128::from(call.charge)).sum();
    let of_outcome = |outcome: &str| -> i128 {
        let calls = book.shown().filter(|call| call.outcome == outcome);
        calls.map(|call| i128::from(call.charge)).sum()
    };
    let pairs = |ranked: Vec<(String, i128, i64, i64)>| {
        let row = |(name, cost, ..): (String, i128, i64, i64)| vec![text(name), Cell::Money(cost)];
        ranked.into_iter().map(row).collect::<Vec<_>>()
    };
    let attempted = || book.shown().filter(|call| !call.refused);
    Some(match title {
        "Spend" => vec![vec![Cell::Money(total)]],
        "Requests" => vec![vec![Cell::Count(book.shown().count() as i64)]],
        "Refused" => vec![vec![Cell::Count(
            book.shown().filter(|call| call.refused).count() as i64,
        )]],
        "Cancelled and failed spend" => {
            vec![vec![
                Cell::Money(of_outcome("cancelled")),
                Cell::Money(of_outcome("failed")),
            ]]
        }
        "Spend by team" => {
            let sums = by_day(book.shown(), |call| call.team.clone());
            let row = |((day, team), cost): ((i64, String), i128)| {
                vec![text(day_of(day * DAY_US)), text(team), Cell::Money(cost)]
            };
            sums.into_iter().map(row).collect()
        }
        "Burn-down by team" => {
            let mut so_far: BTreeMap<String, i128> = BTreeMap::new();
            let sums = by_day(book.shown(), |call| call.team.clone()).into_iter();
            let row = |((day, team), cost): ((i64, String), i128)| {
                let sum = so_far.entry(team.clone()).or_default();
                *sum += cost;
                vec![text(day_of(day * DAY_US)), text(team), Cell::Money(*sum)]
            };
            sums.map(row).collect()
        }
        "Spend by workflow" => {
            let ranked = ranked(
                book.shown()
                    .map(|call| (format!("{}|{}", call.team, call.workflow), call)),
            );
            let row = |(name, cost, requests, _): (String, i128, i64, i64)| {
                let (team, workflow) = name.split_once('|').unwrap();
                let per_request = Cell::Number(cost as f64 / 1e9 / requests as f64);
                vec![
                    text(team),
                    text(workflow),
                    Cell::Money(cost),
                    Cell::Count(requests),
                    per_request,
                ]
            };
            ranked.into_iter().take(50).map(row).collect()
        }
        "Top keys" => {
            let named = |call: &Call| format!("{}|{}|{}", call.team, call.workflow, call.key);
            let ranked = ranked(book.shown().map(|call| (named(call), call)));
            let row = |(name, cost, requests, refused): (String, i128, i64, i64)| {
                let mut row: Vec<Cell> = name.split('|').map(text).collect();
                row.extend([Cell::Money(cost), Cell::Count(requests), Cell::Count(refused)]);
                row
            };
            ranked.into_iter().take(20).map(row).collect()
        }
        "Cost by backend class" => pairs(ranked(attempted().map(|call| (call.class.to_owned(), call)))),
        "Cost by service tier" => pairs(ranked(attempted().map(|call| (call.tier.to_owned(), call)))),
        "Cost by model" => pairs(ranked(
            attempted().map(|call| (format!("{}/{}", call.provider, call.model), call)),
        )),
        "Cost by what was billed" => billed(book),
        "Cancelled and failed spend by day" => {
            let mut days: BTreeMap<i64, [i128; 2]> = BTreeMap::new();
            for call in book.shown() {
                let day = days.entry(call.hour_us().div_euclid(DAY_US)).or_default();
                day[0] += i128::from(if call.outcome == "cancelled" {
                    call.charge
                } else {
                    0
                });
                day[1] += i128::from(if call.outcome == "failed" { call.charge } else { 0 });
            }
            let row = |(day, [cancelled, failed]): (i64, [i128; 2])| {
                vec![
                    text(day_of(day * DAY_US)),
                    Cell::Money(cancelled),
                    Cell::Money(failed),
                ]
            };
            days.into_iter().map(row).collect()
        }
        "Unit price of output" => unit_prices(book),
        "Budgets now" => budgets(book),
        "Budgets and their forecast to the window's end" => forecasts(book),
        "Burn rates" => burn_rates(book).into_iter().map(|(row, _)| row).collect(),
        _ => return None,
    })
}

/// By item, from raw rows: by the moment of the request, not by the hour.
fn billed(book: &Book) -> Vec<Vec<Cell>> {
    let mut sums: BTreeMap<&str, i128> = BTreeMap::new();
    let calls = book
        .calls
        .iter()
        .filter(|call| call.org == "acme" && !call.refused);
    for call in calls.filter(|call| (FROM_US..=AS_OF_US).contains(&call.started_us)) {
        for (item, _, amount) in &call.lines {
            *sums.entry(item).or_default() += i128::from(*amount);
        }
        if call.lines.is_empty() {
            *sums.entry("(whole)").or_default() += i128::from(call.charge);
        }
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
    sums.into_iter()
        .map(|(item, cost)| vec![text(item), Cell::Money(cost)])
        .collect()
}

fn unit_prices(book: &Book) -> Vec<Vec<Cell>> {
    let mut sums: BTreeMap<(i64, String), (i128, i64)> = BTreeMap::new();
    for call in &book.calls {
        let day = call.started_us.div_euclid(DAY_US);
        if (FROM_US..=AS_OF_US).contains(&(day * DAY_US)) {
            for (_, quantity, amount) in call.lines.iter().filter(|line| line.0 == "output") {
                let sum = sums
                    .entry((day, format!("{}/{}", call.provider, call.model)))
                    .or_default();
                *sum = (sum.0 + i128::from(*amount), sum.1 + quantity);
            }
        }
    }
    let row = |((day, model), (cost, tokens)): ((i64, String), (i128, i64))| {
        vec![
            text(day_of(day * DAY_US)),
            text(model),
            Cell::Number(cost as f64 / 1e9 * 1e6 / tokens as f64),
        ]
    };
    sums.into_iter().map(row).collect()
}

fn spent(book: &Book, id: &str) -> i64 {
    let calls = book.in_budget(id).filter(|call| call.started_us >= WINDOW.0);
    calls.map(|call| call.charge).sum()
}

fn budgets(book: &Book) -> Vec<Vec<Cell>> {
    let mut rows: Vec<(i64, Vec<Cell>)> = BUDGETS
        .iter()
        .map(|(id, _, _, amount)| {
            let spent = spent(book, id);
            let money = |nanos: i64| Cell::Money(i128::from(nanos));
            let row = vec![
                text(*id),
                text("hard"),
                text(day_of(WINDOW.0)),
                text(day_of(WINDOW.1)),
                money(*amount),
                money(spent),
                money(1_000_000_000),
                money(amount - spent),
            ];
            (amount - spent, row)
        })
        .collect();
    rows.sort_by_key(|(left, _)| *left);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// The forecast by its definition: the mean of each weekday over four weeks for each day that is left, and the spread of days
/// around it.
fn forecast(book: &Book, id: &str) -> (f64, f64) {
    let today = AS_OF_US.div_euclid(DAY_US);
    let mut days: BTreeMap<i64, f64> = (today - 28..today).map(|day| (day, 0.0)).collect();
    for call in book.in_budget(id) {
        if let Some(cost) = days.get_mut(&call.hour_us().div_euclid(DAY_US)) {
            *cost += call.charge as f64 / 1e9;
        }
    }
    let weekday = |day: i64| day.rem_euclid(7);
    let mean = |of: i64| {
        let same: Vec<f64> = days
            .iter()
            .filter(|(day, _)| weekday(**day) == of)
            .map(|(_, cost)| *cost)
            .collect();
        same.iter().sum::<f64>() / same.len() as f64
    };
    let squares: f64 = days
        .iter()
        .map(|(day, cost)| (cost - mean(weekday(*day))).powi(2))
        .sum();
    let variance = squares / (28.0 - 7.0);
    let (mut expected, mut parts) = (0.0, 0.0);
    for day in today..WINDOW.1 / DAY_US {
        let from = (day * DAY_US).max(AS_OF_US);
        let part = ((day + 1) * DAY_US - from) as f64 / DAY_US as f64;
        expected += part * mean(weekday(day));
        parts += part;
    }
    let spent = spent(book, id) as f64 / 1e9;
    let p50 = spent + expected;
    (p50, p50 + 1.281_551_565_544_600_4 * (parts * variance).sqrt())
}

fn forecasts(book: &Book) -> Vec<Vec<Cell>> {
    let mut rows: Vec<(f64, Vec<Cell>)> = BUDGETS
        .iter()
        .map(|(id, _, _, amount)| {
            let (p50, p90) = forecast(book, id);
            let share = p50 / (*amount as f64 / 1e9);
            let money = |nanos: i64| Cell::Money(i128::from(nanos));
            // What is rounded to nine decimals there is not here.
            let row = vec![
                text(*id),
                text(day_of(WINDOW.1)),
                money(*amount),
                money(spent(book, id)),
                Cell::Number(p50),
                Cell::Number(p90),
                Cell::Number(share),
                Cell::Any,
            ];
            (share, row)
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Rows, and the five rates of each.
fn burn_rates(book: &Book) -> Vec<(Vec<Cell>, [f64; 5])> {
    let mut rows: Vec<(Vec<Cell>, [f64; 5])> = BUDGETS
        .iter()
        .map(|(id, _, _, amount)| {
            let pace = *amount as f64 / (WINDOW.1 - WINDOW.0) as f64;
            let long = |hours: i64| {
                let start = AS_OF_US - hours * HOUR_US;
                let cost: f64 = book
                    .in_budget(id)
                    .map(|call| {
                        let part = (call.hour_us() + HOUR_US - start) as f64 / HOUR_US as f64;
                        call.charge as f64 * part.clamp(0.0, 1.0)
                    })
                    .sum();
                cost / (hours * HOUR_US) as f64 / pace
            };
            let short = |minutes: i64| {
                let start = AS_OF_US - minutes * 60_000_000;
                let settled = book
                    .in_budget(id)
                    .filter(|call| (start + 1..=AS_OF_US).contains(&call.settled_us()));
                settled.map(|call| call.charge as f64).sum::<f64>() / (minutes * 60_000_000) as f64 / pace
            };
            let rates = [short(5), short(30), long(1), long(6), long(72)];
            let [m5, m30, h1, h6, d3] = rates;
            let severity = if (h1 > 14.4 && m5 > 14.4) || (h6 > 6.0 && m30 > 6.0) {
                "page"
            } else if d3 > 1.0 && h6 > 1.0 {
                "ticket"
            } else {
                "none"
            };
            let mut row = vec![text(*id)];
            row.extend([m5, h1, m30, h6, d3].map(Cell::Number));
            row.push(text(severity));
            (row, rates)
        })
        .collect();
    rows.sort_by(|a, b| b.1[4].total_cmp(&a.1[4]));
    rows
}

#[test]
fn every_query_of_the_dashboard_and_the_alerts_tells_the_truth() {
    let book = Book::seeded();
    let dashboard = read("deploy/grafana/dashboards/finance.json");
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let expected =
            expected(&book, title).unwrap_or_else(|| panic!("no numbers are known for the panel {title}"));
        assert!(!expected.is_empty(), "{title}: the seed leaves nothing to see");
        let targets = panel["targets"].as_array().unwrap();
        assert_eq!(targets.len(), 1, "{title}");
        book.check(title, targets[0]["rawSql"].as_str().unwrap(), &expected);
    }
    assert!(panels.len() >= 16);
    let variable = dashboard["templating"]["list"][0]["query"].as_str().unwrap();
    book.check("variable", variable, &[vec![text("acme")], vec![text("globex")]]);

    let alerts = read("deploy/grafana/provisioning/alerting/burn-rate.json");
    let rules = alerts["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 3);
    for rule in rules {
        let firing = burn_rates(&book)
            .into_iter()
            .filter_map(|(row, [m5, m30, h1, h6, d3])| {
                let (fires, rate) = match rule["uid"].as_str().unwrap() {
                    "tollgate-burn-fast" => (h1 > 14.4 && m5 > 14.4, h1),
                    "tollgate-burn-medium" => (h6 > 6.0 && m30 > 6.0, h6),
                    "tollgate-burn-slow" => (d3 > 1.0 && h6 > 1.0, d3),
                    other => panic!("no numbers are known for the alert {other}"),
                };
                fires.then(|| vec![row[0].clone(), Cell::Number(rate)])
            });
        let mut firing: Vec<Vec<Cell>> = firing.collect();
        firing.sort_by_key(|row| format!("{:?}", row[0]));
        let sql = format!(
            "{} ORDER BY budget",
            rule["data"][0]["model"]["rawSql"].as_str().unwrap()
        );
        book.check(rule["uid"].as_str().unwrap(), &sql, &firing);
    }

    // The views as they stand run as of now, whatever they find.
    for view in ["budget_forecast", "burn_rate", "spend_daily", "budget_status"] {
        book.rows(&format!("SELECT * FROM finance.{view} LIMIT 1"));
    }
    lines_sum_to_the_ledger(&book);
    the_forecast_is_near_what_comes(&book);
    alerts_fire_on_a_burst(&book);
}

fn lines_sum_to_the_ledger(book: &Book) {
    let total: i128 = book.calls.iter().map(|call| i128::from(call.charge)).sum();
    for sql in [
        "SELECT sum(cost) FROM finance.charges",
        "SELECT sum(cost) FROM finance.spend_hourly",
        "SELECT sum(cost) FROM finance.spend_daily",
        "SELECT finance.dollars(sum(charge)) FROM requests",
    ] {
        book.check(sql, sql, &[vec![Cell::Money(total)]]);
    }
}

/// The same traffic goes on to the end of the month: what was forecast on the 20th is near what it comes to.
fn the_forecast_is_near_what_comes(book: &Book) {
    let come = seed::calls_until(WINDOW.1).filter(|call| call.org == "acme" && call.started_us >= WINDOW.0);
    let come = come.map(|call| call.charge as f64 / 1e9).sum::<f64>();
    let (p50, p90) = forecast(book, "acme month");
    assert!(
        (p50 - come).abs() / come < 0.1,
        "P50 {p50}, and it came to {come}"
    );
    assert!(p90 > p50 && p90 < 1.3 * p50, "P90 {p90}");
    let used_up = book.rows(&format!(
        "SELECT exhausted_p50 < window_end, exhausted_p50 > {} FROM finance.budget_forecasts({}) WHERE budget = 'acme/t1 month'",
        moment(AS_OF_US),
        moment(AS_OF_US)
    ));
    let overdrawn = spent(book, "acme/t1 month") >= 25_000_000_000;
    let expected = if overdrawn { ["t", "f"] } else { ["t", "t"] };
    assert_eq!(
        used_up,
        [expected],
        "the small budget does not last: {} spent, {:?}",
        spent(book, "acme/t1 month"),
        forecast(book, "acme/t1 month")
    );
}

/// A hundred times the money in the last minutes: the fast alert fires, and the slow one does not yet.
fn alerts_fire_on_a_burst(book: &Book) {
    let calm = burn_rates(book)
        .into_iter()
        .find(|(row, _)| row[0].is("acme month"))
        .unwrap();
    assert!(
        calm.1[4] < 2.0 && calm.0[6].is("none") || calm.0[6].is("ticket"),
        "{calm:?}"
    );
    book.postgres.query("tollgate", &seed::burst());
    let told = book.rows(&format!(
        "SELECT severity, rate_5m > 14.4, rate_1h > 14.4 FROM finance.burn_rates({}) WHERE budget = 'acme month'",
        moment(AS_OF_US)
    ));
    assert_eq!(told, [["page", "t", "t"]]);
}
