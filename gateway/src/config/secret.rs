//! Secrets by reference: in the file stands where a secret is, never the secret.

use std::path::Path;

/// A secret's value; its `Debug` shows nothing.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// Reads `env:NAME` or `file:PATH` (relative to `folder`).
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where a secret is taken from the environment"
    )]
    pub(crate) fn resolve(reference: &str, folder: &Path) -> Result<Self, String> {
        let value = if let Some(name) = reference.strip_prefix("env:") {
            std::env::var(name).map_err(|_| format!("the environment variable {name} is not set"))?
        } else if let Some(path) = reference.strip_prefix("file:") {
            let path = folder.join(path);
            std::fs::read_to_string(&path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))?
        } else {
            return Err("must say where the secret is, as `env:NAME` or `file:PATH`; a secret itself does not belong in this file".into());
        };
        let value = value.trim();
        if value.is_empty() {
            return Err(format!("{reference} is empty"));
        }
        Ok(Self(value.to_owned()))
    }

    /// A value that turned out to hold nothing secret.
    pub(crate) fn plain(value: &str) -> Self {
        Self(value.to_owned())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
