//! `policy explain`: one request, its decision and every term of it.

use super::{Format, Verdict, json, read};
use crate::{Cases, Given, document, explain};
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct Explain {
    policy: PathBuf,
    /// The request, as `given` of a case: '{workflow: contracts, input_tokens: 6000}'.
    #[arg(long, default_value = "{}", conflicts_with_all = ["cases", "case"])]
    given: String,
    /// A file of cases.
    #[arg(long, requires = "case")]
    cases: Option<PathBuf>,
    /// The name of a case in it.
    #[arg(long, requires = "cases")]
    case: Option<String>,
    /// Files with the layers of teams that keep their own.
    #[arg(long)]
    team: Vec<PathBuf>,
}

impl Explain {
    pub(crate) fn run(&self, format: Format, out: &mut impl Write) -> anyhow::Result<Verdict> {
        let policy = super::policy(&self.policy, &self.team)?;
        let outcome = self.given()?.decide(&policy);
        match format {
            Format::Text => write!(out, "{}", explain(&outcome))?,
            Format::Json => {
                let refused = outcome.decided.as_ref().err();
                let refused = refused.map(|refused| {
                    json!({ "code": refused.kind, "message": refused.message, "hint": refused.hint })
                });
                let shown = json!({
                    "profile": outcome.profile, "decision": outcome.decided.as_ref().ok(), "refused": refused,
                    "trace": outcome.trace(),
                });
                json(&shown, out)?;
            }
        }
        Ok(Verdict::Good)
    }

    fn given(&self) -> anyhow::Result<Given> {
        let Some((file, name)) = self.cases.as_ref().zip(self.case.as_ref()) else {
            let (given, mistakes) = document::read::<Given>(&self.given, "--given");
            return Ok(mistakes.none_or(given.unwrap_or_default())?);
        };
        let cases = Cases::parse(&read(file)?, &file.display().to_string())?;
        let names: Vec<String> = cases.0.iter().map(|case| case.name.clone()).collect();
        let found = cases.0.into_iter().find(|case| case.name == *name);
        found.map(|case| case.given).with_context(|| {
            let near = document::nearest(name, names.iter().map(String::as_str));
            let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            format!("no case is called `{name}`{near}")
        })
    }
}
