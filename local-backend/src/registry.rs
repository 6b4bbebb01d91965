//! Which models there are, which are loaded, and when they are unloaded. Owns loading on demand, idle unloading and the
//! memory budget; refuses to know HTTP. Invariants: a model is loaded once however many ask for it at the same time; a
//! model with a request is never unloaded.

use crate::api::BadRequest;
use crate::progress::told;
use crate::settings::{ModelSettings, Settings, name_of};
use crate::tools::{Format, MARKS};
use engine::backend::ModelInfo;
use engine::engine::{self as core, Engine, Speculation};
use engine::grammar::Grammars;
use engine::model::{Place, Progress, load_watched};
use engine::scheduler::Limits;
use engine::text::{ChatTemplate, Tokenizer};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Weights take about as much memory as their file.
const OF_FILE: f64 = 1.1;

/// A loaded model.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) engine: Engine,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) info: ModelInfo,
    pub(crate) limits: RequestLimits,
    /// Special tokens that are shown.
    pub(crate) marks: Arc<[u32]>,
    /// Whether it may think of its own accord.
    pub(crate) thinks: bool,
    pub(crate) tool_format: Format,
    grammars: OnceLock<Result<Grammars, String>>,
    bytes: u64,
}

/// What a request may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLimits {
    pub(crate) max_n: usize,
}

impl Model {
    fn load(
        settings: &Settings,
        model: &ModelSettings,
        (name, progress): (String, &Arc<Progress>),
    ) -> anyhow::Result<Self> {
        let threads = match settings.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let place = settings.place.clone().unwrap_or_else(|| Place::cpu(threads));
        let place = place.keeping(model.kv_cache).map_err(anyhow::Error::msg)?;
        let loaded = told(&name, progress, || load_watched(&model.path, &place, progress))?;
        let kv_tokens = match (model.kv_tokens, loaded.fitting_tokens) {
            (0, Some(fitting)) => fitting,
            (0, None) => {
                anyhow::bail!("`kv_tokens` of 0 takes what memory a card has free; on the CPU say how many")
            }
            (asked, _) => asked,
        };
        let tokenizer = Arc::new(loaded.tokenizer);
        let template = match &model.chat_template_file {
            None => loaded.template,
            Some(file) => {
                let source = std::fs::read_to_string(file).map_err(|error| {
                    anyhow::anyhow!("the template {} cannot be read: {error}", file.display())
                })?;
                let template = ChatTemplate::new(&source);
                Some(template.map_err(|problem| anyhow::anyhow!("{}: {problem}", file.display()))?)
            }
        };
        let source = template.as_ref().map(ChatTemplate::source).unwrap_or_default();
        let special = |mark: &&str| {
            tokenizer
                .token_id(mark)
                .filter(|token| tokenizer.is_special(*token))
        };
        let marks: Arc<[u32]> = MARKS.iter().filter_map(special).collect();
        let speculation = if settings.speculation {
            Speculation::PromptLookup
        } else {
            Speculation::Off
        };
        let sizes = core::Settings {
            kv_tokens,
            limits: Limits {
                running: settings.slots,
                ..Limits::default()
            },
            queue: settings.queue,
            speculation,
        };
        let kv_bytes = (kv_tokens.div_ceil(engine::backend::BLOCK_TOKENS) * loaded.info.block_bytes()) as u64;
        Ok(Self {
            name,
            thinks: tokenizer.token_id("<think>").is_some() || source.contains("<think>"),
            tool_format: Format::of(&source),
            engine: Engine::start(loaded.backend, tokenizer.clone(), sizes)?,
            template,
            limits: RequestLimits {
                max_n: settings.max_n,
            },
            bytes: loaded.info.bytes + kv_bytes,
            info: loaded.info,
            grammars: OnceLock::new(),
            tokenizer,
            marks,
        })
    }

    /// Whether a mark is a token of its own.
    pub(crate) fn is_special(&self, mark: &str) -> bool {
        self.tokenizer
            .token_id(mark)
            .is_some_and(|token| self.marks.contains(&token))
    }

    /// The tokens of a text that is no conversation.
    pub(crate) fn plain_tokens(&self, text: &str) -> Vec<u32> {
        let begins = self.info.bos.filter(|_| self.info.add_bos);
        begins
            .into_iter()
            .chain(self.tokenizer.encode(text, false))
            .collect()
    }

    /// # Errors
    /// The prompt leaves no room for an answer.
    pub(crate) fn check_length(&self, tokens: usize, param: &'static str) -> Result<(), BadRequest> {
        let context = self.engine.context_tokens;
        match tokens < context {
            true => Ok(()),
            false => Err(BadRequest {
                message: format!(
                    "the prompt has {tokens} tokens; this model takes fewer than {context}, prompt and answer together"
                ),
                param: Some(param),
                code: Some("context_length_exceeded"),
            }),
        }
    }

    /// Made when they are first wanted: a vocabulary takes a moment to be indexed.
    ///
    /// # Errors
    /// The vocabulary cannot be indexed.
    pub(crate) fn grammars(&self) -> Result<&Grammars, String> {
        let make =
            || Grammars::new(self.tokenizer.clone(), &self.info.eos).map_err(|error| error.to_string());
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Bytes of weights and cache.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

enum State {
    Absent,
    /// Those who wait are told when it is over.
    Loading(watch::Receiver<()>, Arc<Progress>),
    Ready(Arc<Model>),
    /// It could not be loaded; tried again when it is next asked for.
    Broken(String),
}

struct Entry {
    name: String,
    settings: ModelSettings,
    state: State,
    /// When it was last asked for.
    used: Instant,
}

/// All models.
pub(crate) struct Registry {
    entries: Mutex<Vec<Entry>>,
    settings: Settings,
}

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error("there is no model `{asked}`; there are: {known}")]
    Unknown { asked: String, known: String },
    #[error("there is no memory for `{0}` while other models answer requests")]
    NoMemory(String),
    #[error("{0}")]
    Broken(String),
}

/// A model as it is listed.
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) state: &'static str,
    pub(crate) problem: Option<String>,
    /// How much of it is loaded, from 0 to 1.
    pub(crate) progress: f64,
    pub(crate) model: Option<Arc<Model>>,
}

impl Registry {
    /// From the settings; nothing is loaded yet.
    ///
    /// # Errors
    /// Two models have the same name.
    pub(crate) fn new(settings: Settings) -> anyhow::Result<Self> {
        let mut entries: Vec<Entry> = Vec::new();
        for model in &settings.models {
            let name = model.name.clone().unwrap_or_else(|| name_of(&model.path));
            if entries.iter().any(|entry| entry.name == name) {
                anyhow::bail!("two models are called `{name}`: give one of them another `name`");
            }
            entries.push(Entry {
                name,
                settings: model.clone(),
                state: State::Absent,
                used: Instant::now(),
            });
        }
        Ok(Self {
            entries: Mutex::new(entries),
            settings,
        })
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All models and what they are at.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let listed = |entry: &Entry| {
            let progress = match &entry.state {
                State::Loading(_, progress) => progress.share(),
                State::Ready(_) => 1.0,
                _ => 0.0,
            };
            let (state, problem, model) = match &entry.state {
                State::Absent => ("unloaded", None, None),
                State::Loading(..) => ("loading", None, None),
                State::Ready(model) => ("ready", None, Some(model.clone())),
                State::Broken(problem) => ("broken", Some(problem.clone()), None),
            };
            Listed {
                name: entry.name.clone(),
                state,
                problem,
                progress,
                model,
            }
        };
        self.entries().iter().map(listed).collect()
    }

    /// Names of models to load at start.
    pub(crate) fn preloaded(&self) -> Vec<String> {
        let entries = self.entries();
        let wanted = entries
            .iter()
            .enumerate()
            .filter(|(at, entry)| *at == 0 || entry.settings.preload);
        wanted.map(|(_, entry)| entry.name.clone()).collect()
    }

    /// A model, loaded if it must be. Without a name, the first.
    ///
    /// # Errors
    /// It is not known, does not fit, or cannot be loaded.
    pub(crate) async fn get(self: &Arc<Self>, asked: Option<&str>) -> Result<Arc<Model>, GetError> {
        loop {
            let mut waits = match self.look(asked)? {
                Look::Ready(model) => return Ok(model),
                Look::Wait(waits) => waits,
                Look::Load { at, done, progress } => {
                    let registry = self.clone();
                    let loaded =
                        tokio::task::spawn_blocking(move || registry.load(at, (&done, &progress))).await;
                    loaded.map_err(|_| GetError::Broken("loading the model failed".into()))??;
                    continue;
                }
            };
            // An error says that loading is over, too.
            let _ = waits.changed().await;
            if let Some(problem) = self.problem(asked) {
                return Err(GetError::Broken(problem));
            }
        }
    }

    fn problem(&self, asked: Option<&str>) -> Option<String> {
        let entries = self.entries();
        let entry = find(&entries, asked).map(|at| &entries[at])?;
        match &entry.state {
            State::Broken(problem) => Some(problem.clone()),
            _ => None,
        }
    }

    fn look(&self, asked: Option<&str>) -> Result<Look, GetError> {
        let mut entries = self.entries();
        let Some(at) = find(&entries, asked) else {
            let known: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            return Err(GetError::Unknown {
                asked: asked.unwrap_or_default().into(),
                known: known.join(", "),
            });
        };
        let entry = &mut entries[at];
        entry.used = Instant::now();
        Ok(match &entry.state {
            State::Ready(model) => Look::Ready(model.clone()),
            State::Loading(waits, _) => Look::Wait(waits.clone()),
            State::Absent | State::Broken(_) => {
                let (done, waits) = watch::channel(());
                let progress = Arc::new(Progress::default());
                entry.state = State::Loading(waits, progress.clone());
                Look::Load { at, done, progress }
            }
        })
    }

    fn load(
        &self,
        at: usize,
        (done, progress): (&watch::Sender<()>, &Arc<Progress>),
    ) -> Result<(), GetError> {
        let (name, settings) = {
            let entries = self.entries();
            (entries[at].name.clone(), entries[at].settings.clone())
        };
        let made = match self.make_room(&name, file_bytes(&settings.path)) {
            Ok(()) => Model::load(&self.settings, &settings, (name, progress))
                .map_err(|error| GetError::Broken(format!("{error:#}"))),
            Err(error) => Err(error),
        };
        let mut entries = self.entries();
        let result = match made {
            Ok(model) => {
                entries[at].state = State::Ready(Arc::new(model));
                Ok(())
            }
            Err(error) => {
                entries[at].state = match &error {
                    GetError::Broken(problem) => State::Broken(problem.clone()),
                    _ => State::Absent,
                };
                Err(error)
            }
        };
        // Nobody may be waiting.
        let _ = done.send(());
        result
    }

    /// Unloads the models that were not asked for longest, until there is room for so many bytes.
    fn make_room(&self, name: &str, bytes: u64) -> Result<(), GetError> {
        let limit = self.settings.memory_bytes;
        if limit == 0 {
            return Ok(());
        }
        loop {
            let mut entries = self.entries();
            let used: u64 = entries
                .iter()
                .map(|entry| {
                    if let State::Ready(model) = &entry.state {
                        model.bytes
                    } else {
                        0
                    }
                })
                .sum();
            if used + bytes <= limit {
                return Ok(());
            }
            let idle = entries.iter_mut().filter(|entry| is_idle(&entry.state));
            let Some(oldest) = idle.min_by_key(|entry| entry.used) else {
                return Err(GetError::NoMemory(name.into()));
            };
            let state = std::mem::replace(&mut oldest.state, State::Absent);
            drop(entries);
            // Joins the engine's thread.
            drop(state);
        }
    }

    /// Unloads what has been idle for too long. May take a moment: not for async threads.
    pub(crate) fn unload_idle(&self) {
        let limit = Duration::from_secs(self.settings.idle_unload_s);
        if limit.is_zero() {
            return;
        }
        let mut gone = Vec::new();
        for entry in self.entries().iter_mut() {
            if is_idle(&entry.state) && entry.used.elapsed() >= limit {
                gone.push(std::mem::replace(&mut entry.state, State::Absent));
            }
        }
        drop(gone);
    }
}

enum Look {
    Ready(Arc<Model>),
    Wait(watch::Receiver<()>),
    Load {
        at: usize,
        done: watch::Sender<()>,
        progress: Arc<Progress>,
    },
}

fn find(entries: &[Entry], asked: Option<&str>) -> Option<usize> {
    match asked {
        None => (!entries.is_empty()).then_some(0),
        Some(asked) => entries.iter().position(|entry| entry.name == asked),
    }
}

/// Requests hold on to their model.
fn is_idle(state: &State) -> bool {
    matches!(state, State::Ready(model) if Arc::strong_count(model) == 1 && model.engine.is_idle())
}

fn file_bytes(path: &Path) -> u64 {
    let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
    (bytes as f64 * OF_FILE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(names: &[&str]) -> Settings {
        let model = |name: &&str| ModelSettings {
            path: "no/such/file.gguf".into(),
            name: Some((*name).into()),
            kv_tokens: 1024,
            kv_cache: None,
            chat_template_file: None,
            preload: false,
        };
        Settings {
            models: names.iter().map(model).collect(),
            ..Settings::default()
        }
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_explained() {
        let registry = Arc::new(Registry::new(settings(&["a", "b"])).unwrap());
        let unknown = registry.get(Some("c")).await.err().unwrap().to_string();
        assert!(unknown.contains("`c`") && unknown.contains("a, b"), "{unknown}");
        for _ in 0..2 {
            let broken = registry.get(None).await.err().unwrap().to_string();
            assert!(broken.contains("no/such/file.gguf"), "{broken}");
        }
        let (one, two) = tokio::join!(registry.get(Some("b")), registry.get(Some("b")));
        assert!(one.is_err() && two.is_err());
        assert_eq!(registry.list()[0].state, "broken");
        assert!(Registry::new(settings(&["a", "a"])).is_err());
    }

    /// The real model, twice, in room for one.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_model_that_was_not_asked_for_longest_makes_room() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../.run/models/smollm2-135m-instruct-q4_1.gguf");
        let mut settings = settings(&["a", "b"]);
        settings
            .models
            .iter_mut()
            .for_each(|model| model.path.clone_from(&path));
        (settings.memory_bytes, settings.idle_unload_s) = (200_000_000, 1);
        let registry = Arc::new(Registry::new(settings).unwrap());
        let states = |registry: &Registry| {
            registry
                .list()
                .iter()
                .map(|listed| listed.state)
                .collect::<Vec<_>>()
        };
        let (one, again) = tokio::join!(registry.get(Some("a")), registry.get(Some("a")));
        let (one, again) = (one.unwrap(), again.unwrap());
        assert!(Arc::ptr_eq(&one, &again), "loaded once");
        let refused = registry.get(Some("b")).await;
        assert!(matches!(refused, Err(GetError::NoMemory(_))), "it is in use");
        drop((one, again));
        assert!(registry.get(Some("b")).await.is_ok());
        assert_eq!(states(&registry), ["unloaded", "ready"]);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let unloading = registry.clone();
        tokio::task::spawn_blocking(move || unloading.unload_idle())
            .await
            .unwrap();
        assert_eq!(states(&registry), ["unloaded", "unloaded"]);
    }
}
