//! llama.cpp's own benchmark as a child process.

use anyhow::Context;
use std::path::Path;
use std::process::Command;

pub(super) struct Peer<'a> {
    pub(super) program: &'a Path,
    pub(super) model: &'a Path,
    pub(super) threads: usize,
}

impl Peer<'_> {
    /// Tokens per second of one run, after the warm-up that the program makes by itself.
    pub(super) fn measure(&self, prompt: usize, generate: usize) -> anyhow::Result<f64> {
        let output = Command::new(self.program)
            .arg("-m")
            .arg(self.model)
            .args(["-t", &self.threads.to_string(), "-p", &prompt.to_string()])
            .args(["-n", &generate.to_string(), "-r", "1", "-o", "json"])
            .output()
            .with_context(|| format!("{} cannot be run", self.program.display()))?;
        let told: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} did not answer with JSON", self.program.display()))?;
        let rate = told[0]["samples_ts"][0].as_f64();
        rate.with_context(|| format!("{} tells no speed", self.program.display()))
    }
}
