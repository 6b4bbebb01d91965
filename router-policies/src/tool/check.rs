//! `policy check`: all mistakes, then all findings.

use super::{Format, Verdict, json, read};
use crate::{DocumentErrors, Policy, Report, lint};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct Check {
    policy: PathBuf,
    /// Files with the layers of teams that keep their own.
    #[arg(long)]
    team: Vec<PathBuf>,
    /// The policy in force: a downgrade of valuable work without `approved_by` is then an error.
    #[arg(long)]
    against: Option<PathBuf>,
}

impl Check {
    pub(crate) fn run(&self, format: Format, out: &mut impl Write) -> anyhow::Result<Verdict> {
        let text = read(&self.policy)?;
        let policy = match super::policy(&self.policy, &self.team) {
            Ok(policy) => policy,
            Err(error) => match error.downcast::<DocumentErrors>() {
                Ok(mistakes) => return told(&mistakes, format, out),
                Err(other) => return Err(other),
            },
        };
        let report = lint(&policy, &text, None);
        let unapproved = match &self.against {
            None => Vec::new(),
            Some(old) => {
                let moves = crate::diff(&super::policy(old, &[])?, &policy).moves;
                moves.into_iter().filter(|one| one.needs_approval).collect()
            }
        };
        match format {
            Format::Json => json(
                &json!({
                    "file": self.policy.display().to_string(), "version": policy.version(), "mistakes": [],
                    "findings": report.findings, "inversions": report.inversions, "workflows": report.workflows,
                    "unapproved_downgrades": unapproved,
                }),
                out,
            )?,
            Format::Text => {
                self.text(&policy, &report, out)?;
                for one in &unapproved {
                    writeln!(
                        out,
                        "error[unapproved_downgrade]: `{}` ({}) moves to a weaker class; name who agreed under `approved_by`",
                        one.workflow, one.tier
                    )?;
                }
            }
        }
        Ok(Verdict::good_if(!report.has_errors() && unapproved.is_empty()))
    }

    fn text(&self, policy: &Policy, report: &Report, out: &mut impl Write) -> anyhow::Result<()> {
        let file = self.policy.display();
        for finding in &report.findings {
            writeln!(out, "{file}:{finding}")?;
        }
        let tau = report.inversions.kendall_tau;
        writeln!(
            out,
            "{file}: version {}, {} deployments, {} workflows, {} rules; {} findings, {} budget inversions{}",
            policy.version(),
            policy.deployments().len(),
            report.workflows.len(),
            policy.rule_names().len(),
            report.findings.len(),
            report.inversions.inverted.len(),
            tau.map_or(String::new(), |tau| format!(
                ", Kendall's tau of worth and class {tau:.3}"
            )),
        )?;
        Ok(())
    }
}

fn told(mistakes: &DocumentErrors, format: Format, out: &mut impl Write) -> anyhow::Result<Verdict> {
    match format {
        Format::Text => {
            for mistake in &mistakes.0 {
                writeln!(out, "{mistake}")?;
            }
            writeln!(out, "{} mistakes", mistakes.0.len())?;
        }
        Format::Json => {
            let shown: Vec<_> = mistakes
                .0
                .iter()
                .map(|one| {
                    json!({
                        "file": one.file, "line": one.line, "column": one.column, "path": one.path,
                        "problem": one.problem, "hint": one.hint,
                    })
                })
                .collect();
            json(&json!({ "mistakes": shown, "findings": [] }), out)?;
        }
    }
    Ok(Verdict::Bad)
}
