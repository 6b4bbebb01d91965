//! `policy test`: cases that must hold, and rules that no case reaches.

use super::{Format, Verdict, json, read};
use crate::Cases;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct Test {
    policy: PathBuf,
    #[arg(required = true)]
    cases: Vec<PathBuf>,
    /// Files with the layers of teams that keep their own.
    #[arg(long)]
    team: Vec<PathBuf>,
    /// Fail when a rule is reached by no case.
    #[arg(long)]
    require_coverage: bool,
}

impl Test {
    pub(crate) fn run(&self, format: Format, out: &mut impl Write) -> anyhow::Result<Verdict> {
        let policy = super::policy(&self.policy, &self.team)?;
        let mut cases = Cases(Vec::new());
        for file in &self.cases {
            cases
                .0
                .extend(Cases::parse(&read(file)?, &file.display().to_string())?.0);
        }
        let failures = cases.run(&policy);
        let rules = policy.rule_names().len();
        let unreached = cases.unreached(&policy);
        let covered = rules - unreached.len();
        match format {
            Format::Json => {
                let failed: Vec<_> = failures
                    .iter()
                    .map(|one| json!({ "case": one.case, "what": one.what, "expected": one.expected, "found": one.found }))
                    .collect();
                let unreached: Vec<_> = unreached
                    .iter()
                    .map(|(kind, name)| json!({ "kind": kind, "name": name }))
                    .collect();
                let shown = json!({
                    "cases": cases.0.len(), "failures": failed, "rules": rules, "covered": covered, "unreached": unreached,
                });
                json(&shown, out)?;
            }
            Format::Text => {
                for failure in &failures {
                    writeln!(out, "FAIL {failure}")?;
                }
                for (kind, name) in &unreached {
                    writeln!(out, "no case reaches {kind} `{name}`")?;
                }
                let share = (covered * 100).checked_div(rules).unwrap_or(100);
                writeln!(
                    out,
                    "{} cases, {} failures; {covered} of {rules} rules reached ({share} %)",
                    cases.0.len(),
                    failures.len()
                )?;
            }
        }
        Ok(Verdict::good_if(
            failures.is_empty() && (!self.require_coverage || unreached.is_empty()),
        ))
    }
}
