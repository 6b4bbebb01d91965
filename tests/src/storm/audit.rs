//! The comparison: what the provider served against what the ledger says.

use super::cost;
use super::store::Store;
use crate::fake::{Ended, Entry};
use std::collections::HashMap;

/// What one caller's requests came to, at the provider.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// Calls that reached it.
    pub calls: i64,
    /// Nano-dollars' worth.
    pub worth: i64,
}

/// Who sent a request, from its body.
pub fn caller(entry: &Entry) -> Option<usize> {
    let (_, rest) = entry.body.as_deref()?.split_once("key=")?;
    rest.split_once(';')?.0.parse().ok()
}

/// What an entry is worth: an error costs nothing, all else what was read and made, whether or not anyone stayed to see.
fn worth(entry: &Entry) -> i64 {
    let refused = entry.status >= 400;
    let unread = entry.body_read_us.is_none();
    if refused || unread {
        0
    } else {
        cost(i64::from(entry.tokens))
    }
}

/// By caller.
pub fn served(entries: &[Entry]) -> HashMap<usize, Served> {
    let mut all: HashMap<usize, Served> = HashMap::new();
    for entry in entries {
        if let Some(caller) = caller(entry) {
            let served = all.entry(caller).or_default();
            served.calls += 1;
            served.worth += worth(entry);
        }
    }
    all
}

/// By team, for callers dealt to `teams` in turn.
pub fn by_team(served: &HashMap<usize, Served>, teams: usize) -> Vec<i64> {
    let mut worth = vec![0; teams];
    for (caller, served) in served {
        worth[caller % teams] += served.worth;
    }
    worth
}

/// The verdict.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Served beyond a limit, over all teams.
    pub overspend: i64,
    /// In the ledger beyond a limit, less what providers billed beyond what was held (which is listed by request).
    pub ledger_overspend: i64,
    pub overbilled: i64,
    pub overbilled_requests: i64,
    /// Calls that the provider saw and the ledger does not know.
    pub lost: i64,
    /// Attempts in the ledger beyond those the provider saw and those that may not have reached it.
    pub duplicated: i64,
    /// Budget windows that disagree with the attempts in them, or with money still out.
    pub mismatched: Vec<String>,
    pub served: i64,
    pub charged: i64,
}

impl Verdict {
    /// Nothing was overspent, lost or counted twice.
    pub const fn is_sound(&self) -> bool {
        self.overspend == 0
            && self.ledger_overspend == 0
            && self.lost == 0
            && self.duplicated == 0
            && self.mismatched.is_empty()
    }
}

/// Compares, after every node has ended well.
pub fn audit(store: &Store, entries: &[Entry], (teams, limit): (usize, i64)) -> Verdict {
    let served = served(entries);
    let mut verdict = Verdict::default();
    for worth in by_team(&served, teams) {
        verdict.overspend += (worth - limit).max(0);
        verdict.served += worth;
    }
    let number = |cell: &str| cell.parse::<i64>().unwrap_or(0);
    let sql = "SELECT r.key, count(*), sum(CASE WHEN a.outcome IN ('crashed', 'connect_failed', 'cancelled', 'broke_off') THEN 1 ELSE 0 END) \
               FROM attempts a JOIN requests r ON r.id = a.request GROUP BY r.key";
    let mut known: HashMap<usize, (i64, i64)> = HashMap::new();
    for row in store.rows(sql) {
        let caller = row[0].trim_start_matches('k').parse().unwrap();
        known.insert(caller, (number(&row[1]), number(&row[2])));
    }
    for (caller, (attempts, unsure)) in &known {
        let seen = served.get(caller).map_or(0, |served| served.calls);
        verdict.duplicated += (attempts - seen - unsure).max(0);
    }
    for (caller, served) in &served {
        let (attempts, _) = known.get(caller).copied().unwrap_or_default();
        verdict.lost += (served.calls - attempts).max(0);
    }
    let sql = "SELECT r.team, sum(r.charge), sum(CASE WHEN r.charge > r.held THEN r.charge - r.held ELSE 0 END), \
               sum(CASE WHEN r.charge > r.held THEN 1 ELSE 0 END) FROM requests r WHERE r.team IS NOT NULL GROUP BY r.team";
    let mut charged: HashMap<String, i64> = HashMap::new();
    for row in store.rows(sql) {
        let (sum, excess) = (number(&row[1]), number(&row[2]));
        verdict.charged += sum;
        verdict.overbilled += excess;
        verdict.overbilled_requests += number(&row[3]);
        verdict.ledger_overspend += (sum - excess - limit).max(0);
        charged.insert(row[0].clone(), sum);
    }
    let sql = "SELECT budget, spent, leased FROM budget_windows WHERE budget LIKE 'storm/% total'";
    for row in store.rows(sql) {
        let team = row[0].trim_start_matches("storm/").trim_end_matches(" total");
        let charged = charged.get(team).copied().unwrap_or(0);
        if charged != number(&row[1]) || number(&row[2]) != 0 {
            let problem = format!(
                "{}: {charged} charged, {} spent, {} leased",
                row[0], row[1], row[2]
            );
            verdict.mismatched.push(problem);
        }
    }
    let hours = store.rows("SELECT sum(charge) FROM hourly WHERE team <> ''");
    let hourly: i64 = hours.first().map_or(0, |row| number(&row[0]));
    if hourly != verdict.charged {
        verdict
            .mismatched
            .push(format!("by the hour: {hourly} of {} charged", verdict.charged));
    }
    verdict
}

/// Admission as the gateway measured it, microseconds from the body read to the decision: p50, p99.
pub fn admission(store: &Store) -> (i64, i64) {
    let sql = "SELECT decided_us - body_read_us FROM requests WHERE decided_us > 0 ORDER BY 1";
    let all: Vec<i64> = store
        .rows(sql)
        .iter()
        .filter_map(|row| row[0].parse().ok())
        .collect();
    let at = |permille: usize| {
        all.get((all.len() * permille / 1000).min(all.len().saturating_sub(1)))
            .copied()
    };
    (at(500).unwrap_or(0), at(990).unwrap_or(0))
}

/// How the provider's entries ended, for the report.
pub fn endings(entries: &[Entry]) -> (usize, usize, usize) {
    let count = |how| entries.iter().filter(|entry| entry.ended == Some(how)).count();
    (count(Ended::Finished), count(Ended::Cancelled), count(Ended::Cut))
}
