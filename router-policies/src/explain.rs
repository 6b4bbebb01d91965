//! One decision, for people: who was in question, what each term of the objective came to, and why the others lost.

use crate::cases::Outcome;
use crate::table::table;
use exchange::{Decision, Profile, Score, Trace};
use std::fmt::Write;

/// The trace of one case as text.
pub fn explain(outcome: &Outcome) -> String {
    let mut out = String::new();
    about(&mut out, &outcome.profile);
    match &outcome.decided {
        Ok(decision) => chosen(&mut out, decision),
        Err(no_route) => {
            let hint = no_route.hint.as_deref().unwrap_or_default();
            let _ = writeln!(out, "refused    {}: {}; {hint}", no_route.kind, no_route.message);
        }
    }
    out.push('\n');
    out.push_str(&trace_table(outcome.trace()));
    out
}

fn about(out: &mut String, profile: &Profile) {
    let workflow = profile.workflow.as_deref().unwrap_or("-");
    let kind = if profile.matched {
        ""
    } else {
        " (not one of the policy's)"
    };
    let _ = writeln!(out, "workflow   {workflow}{kind}");
    let _ = writeln!(
        out,
        "value      {}: {} for a right answer, {} for a wrong one",
        profile.value, profile.worth.value_per_success, profile.worth.failure_cost
    );
    let deadline = profile
        .deadline_ms
        .map_or(String::new(), |ms| format!(", worthless after {ms} ms"));
    let _ = writeln!(
        out,
        "latency    {}: a second costs {}{deadline}",
        profile.latency, profile.worth.second
    );
    if let Some(task) = &profile.task {
        let _ = writeln!(out, "task       {task}");
    }
    let rules: Vec<&str> = profile.evidence.iter().map(|name| &**name).collect();
    let _ = writeln!(
        out,
        "because of {}",
        if rules.is_empty() {
            "defaults".into()
        } else {
            rules.join(", ")
        }
    );
}

fn chosen(out: &mut String, decision: &Decision) {
    let first = decision.plan.first();
    let substituted = if decision.substituted {
        ", in place of the model asked for"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "chosen     {} ({}), {}{substituted}",
        first.deployment, first.class, decision.reason
    );
    let thinking = first
        .thinking
        .map_or("provider's default".into(), |level| level.to_string());
    let _ = writeln!(out, "thinking   {thinking} ({})", first.thinking_note);
    let route = decision.trace.route.as_deref().unwrap_or("none");
    let _ = writeln!(out, "route      {route}, policy {}", decision.policy_version);
    for note in &decision.trace.notes {
        let _ = writeln!(out, "note       {note}");
    }
}

/// One line for each deployment.
pub fn trace_table(trace: &Trace) -> String {
    let head = [
        "deployment",
        "verdict",
        "P",
        "±",
        "from",
        "thinking",
        "worth",
        "risk",
        "price",
        "cache lost",
        "ms",
        "waiting",
        "utility",
    ];
    let rows: Vec<Vec<String>> = trace
        .entries
        .iter()
        .map(|entry| {
            let mut row = vec![entry.deployment.to_string(), entry.verdict.to_string()];
            match &entry.score {
                Some(score) => row.extend(terms(score)),
                None => row.extend((2..head.len()).map(|_| "-".to_owned())),
            }
            row
        })
        .collect();
    table(&head, &rows)
}

fn terms(score: &Score) -> Vec<String> {
    let share = |ppm: u32| format!("{:.3}", f64::from(ppm) / 1e6);
    vec![
        share(score.success_ppm),
        share(score.error_ppm),
        score.source.to_string(),
        score.thinking.map_or("-".into(), |level| level.to_string()),
        score.worth.to_string(),
        score.risk.to_string(),
        score.price.to_string(),
        score.cache_lost.to_string(),
        score.latency_ms.to_string(),
        score.waiting.to_string(),
        score.utility.to_string(),
    ]
}
