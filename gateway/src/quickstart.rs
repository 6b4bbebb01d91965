//! A first installation in one folder: configuration, policy and key, written only where they are missing.

use crate::{clock, config};
use anyhow::Context;
use std::io::Write;
use std::path::{Path, PathBuf};

const POLICY: &str = include_str!("../../router-policies/policies/default.yaml");

pub(crate) struct Choices {
    pub(crate) local_url: String,
    pub(crate) listen: String,
    pub(crate) admin: String,
}

/// Makes the folder ready and returns the configuration's path. The key is in the file `key` beside it.
pub(crate) fn prepare(folder: &Path, choices: &Choices, out: &mut impl Write) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let key_path = folder.join("key");
    let key = match std::fs::read_to_string(&key_path) {
        Ok(key) => key.trim().to_owned(),
        Err(_) => {
            let key = config::key::format(clock::entropy());
            write(&key_path, &format!("{key}\n"))?;
            restrict(&key_path)?;
            key
        }
    };
    let policy = folder.join("policy.yaml");
    if !policy.exists() {
        write(&policy, POLICY)?;
    }
    let path = folder.join("tollgate.yaml");
    // Addresses may differ from one start to the next, so this file is the command line's and is written each time.
    write(&path, &document(&key, choices))?;
    writeln!(out, "key {key}")?;
    Ok(path)
}

fn document(key: &str, choices: &Choices) -> String {
    let Choices {
        local_url,
        listen,
        admin,
    } = choices;
    let hash = config::key::hash_line(key);
    format!(
        "# Written by `tollgate quickstart` at every start. For a configuration of your own: config.example.yaml.
listen:
  - address: {listen}
admin:
  address: {admin}
policy: policy.yaml
providers:
  local:
    dialect: openai_chat
    base_url: {local_url}/v1
accounts:
  demo:
    teams:
      first:
        budgets: [{{limit_dollars: \"1.00\", per: day}}]
        keys:
          quickstart: {{hash: \"{hash}\"}}
# A machine at 4 cents an hour, and what it turns out.
prices:
  - model: smollm2-135m-instruct
    compute: {{dollars_per_hour: \"0.04\", input_tokens_per_second: 500, output_tokens_per_second: 100}}
"
    )
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(unix)]
fn restrict(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))
}
