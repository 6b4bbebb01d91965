//! What the operator says: models, limits, tenants and the price of the machine. A YAML document, and flags over it.

use anyhow::{Context, bail};
use engine::model::{KvKind, Place};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The document; every field may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    /// Compute threads of each model; 0: one for each core.
    pub(crate) threads: usize,
    pub(crate) models: Vec<ModelSettings>,
    /// Loaded models, with their caches, take no more than this; 0: no limit.
    pub(crate) memory_bytes: u64,
    /// A model that nobody has asked for so long is unloaded; 0: never.
    pub(crate) idle_unload_s: u64,
    pub(crate) max_body_bytes: usize,
    /// Requests of a model that may wait.
    pub(crate) queue: usize,
    /// Requests of a model that run at once.
    pub(crate) slots: usize,
    /// Answers to one request.
    pub(crate) max_n: usize,
    /// How long running answers may go on after SIGTERM.
    pub(crate) drain_s: u64,
    /// What an hour of the machine costs, in dollars: a decimal in quotes.
    pub(crate) dollars_per_hour: String,
    /// Without any, everybody may ask, and says who they are with `x-tollgate-tenant`.
    pub(crate) tenants: BTreeMap<String, TenantSettings>,
    /// Guess at next tokens; answers are the same either way.
    pub(crate) speculation: bool,
    /// Where models run, from the flags; `None`: the CPU.
    #[serde(skip)]
    pub(crate) place: Option<Place>,
}

/// A model that can be asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSettings {
    pub(crate) path: PathBuf,
    /// Left out: the file's stem without its quantization.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// Tokens that the cache of keys and values holds, over all requests.
    #[serde(default = "kv_tokens")]
    pub(crate) kv_tokens: usize,
    /// How they are kept: f16, bf16, f32 or int8. Left out: as suits the weights.
    #[serde(default, deserialize_with = "kv_cache")]
    pub(crate) kv_cache: Option<KvKind>,
    /// A template instead of the file's own.
    #[serde(default)]
    pub(crate) chat_template_file: Option<PathBuf>,
    /// Load it at start, not when it is first asked for. The first model of all is loaded in any case.
    #[serde(default)]
    pub(crate) preload: bool,
}

/// Somebody who may ask.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantSettings {
    /// Share relative to others'.
    #[serde(default = "one")]
    pub(crate) weight: u32,
    /// Keys as `sha256:HEX`, or `file:PATH` of a file that holds one.
    #[serde(default)]
    pub(crate) keys: Vec<String>,
    /// May name other tenants with `x-tollgate-tenant`: for a gateway.
    #[serde(default)]
    pub(crate) speaks_for_others: bool,
}

fn kv_tokens() -> usize {
    32_768
}

fn kv_cache<'de, D: Deserializer<'de>>(from: D) -> Result<Option<KvKind>, D::Error> {
    let name = String::deserialize(from)?;
    name.parse().map(Some).map_err(serde::de::Error::custom)
}

fn one() -> u32 {
    1
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8089)),
            threads: 0,
            models: Vec::new(),
            memory_bytes: 0,
            idle_unload_s: 0,
            max_body_bytes: 32 << 20,
            queue: 1024,
            slots: 64,
            max_n: 16,
            drain_s: 30,
            dollars_per_hour: "0".into(),
            tenants: BTreeMap::new(),
            speculation: true,
            place: None,
        }
    }
}

impl Settings {
    /// Reads the document.
    ///
    /// # Errors
    /// The file is missing or has a mistake, which is named with its line.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the settings {} cannot be read", path.display()))?;
        serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
    }

    /// What holds everywhere.
    ///
    /// # Errors
    /// Names what makes no sense.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.models.is_empty() {
            bail!("no model is given: add `--model FILE`, or `models` to the settings");
        }
        if self.slots == 0 || self.queue == 0 || self.max_n == 0 {
            bail!("`slots`, `queue` and `max_n` must be at least 1");
        }
        nanodollars_per_hour(&self.dollars_per_hour)?;
        Ok(())
    }
}

/// A decimal number of dollars as nano-dollars, exactly.
///
/// # Errors
/// It is no decimal, or has more than nine places.
pub(crate) fn nanodollars_per_hour(dollars: &str) -> anyhow::Result<u64> {
    let (whole, part) = dollars.trim().split_once('.').unwrap_or((dollars.trim(), ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 9 || !digits(whole) || !digits(part) {
        bail!("`{dollars}` is no price in dollars an hour: write a decimal such as \"2.50\"");
    }
    let part = format!("{part:0<9}");
    let nano = whole
        .parse::<u64>()
        .ok()
        .and_then(|whole| whole.checked_mul(1_000_000_000))
        .and_then(|whole| whole.checked_add(part.parse().ok()?));
    nano.with_context(|| format!("`{dollars}` dollars an hour is too much"))
}

/// `smollm2-135m-instruct-q4_1.gguf` is `smollm2-135m-instruct`.
pub(crate) fn name_of(path: &Path) -> String {
    let stem = path
        .file_stem()
        .map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    let lower = stem.to_ascii_lowercase();
    let cut = lower
        .rfind("-q")
        .filter(|at| lower[at + 2..].starts_with(|c: char| c.is_ascii_digit()));
    cut.map_or(stem.clone(), |at| stem[..at].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_and_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("local.yaml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Settings::read(&path)
        };
        let settings = read(
            "models: [{path: a-q4_1.gguf, preload: true}]\ndollars_per_hour: \"2.5\"\ntenants: {a: {weight: 3, keys: [\"sha256:ab\"]}}\n",
        )
        .unwrap();
        settings.check().unwrap();
        assert_eq!(settings.tenants["a"].weight, 3);
        assert_eq!(settings.models[0].kv_tokens, 32_768);
        assert_eq!(settings.models[0].kv_cache, None);
        let read_kind = |kind: &str| read(&format!("models: [{{path: a.gguf, kv_cache: {kind}}}]"));
        assert_eq!(read_kind("int8").unwrap().models[0].kv_cache, Some(KvKind::Int8));
        assert!(
            read_kind("int4")
                .unwrap_err()
                .to_string()
                .contains("f16, bf16, f32 and int8")
        );
        let mistake = read("modles: []\n").unwrap_err().to_string();
        assert!(mistake.contains("modles"), "{mistake}");
        assert!(
            read("slots: 4\n")
                .unwrap()
                .check()
                .unwrap_err()
                .to_string()
                .contains("--model")
        );
    }

    #[test]
    fn prices_are_exact() {
        assert_eq!(nanodollars_per_hour("2.50").unwrap(), 2_500_000_000);
        assert_eq!(nanodollars_per_hour("0").unwrap(), 0);
        assert_eq!(nanodollars_per_hour("0.000000001").unwrap(), 1);
        for wrong in ["", ".5", "-1", "1e3", "0.0000000001", "99999999999999"] {
            assert!(nanodollars_per_hour(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_stems_without_the_quantization() {
        assert_eq!(
            name_of(Path::new("x/smollm2-135m-instruct-q4_1.gguf")),
            "smollm2-135m-instruct"
        );
        assert_eq!(name_of(Path::new("Qwen2.5-1.5B-Q4_K_M.gguf")), "Qwen2.5-1.5B");
        assert_eq!(name_of(Path::new("plain.gguf")), "plain");
    }
}
