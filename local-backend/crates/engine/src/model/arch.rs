//! Architectures as data: what one transformer has to know to be llama, qwen2, qwen3, gemma3 or BERT.
//!
//! Owns: reading sizes and constants from GGUF metadata or `config.json`. Refuses to know: tensors, arithmetic. To add an
//! architecture, say here how it differs from [`Config::plain`].

use super::gguf::Gguf;
use kernels::{Activation, Pairs, Reach};
use serde_json::Value;

/// How often a position turns each pair.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) base: f32,
    /// Positions are divided by it.
    pub(super) factor: f32,
}

/// What divides each pair's frequency.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Llama3Scaling {
    pub(super) factor: f32,
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) original_context: f32,
}

/// Where norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Before each half of a layer.
    Before,
    /// Before and after each half, inside the residual.
    Around,
    /// After each half, on the sum.
    After,
}

/// How one vector is made of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    Mean,
    First,
    Last,
}

/// An architecture with its sizes.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) architecture: String,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Inside of the feed-forward layers; what the file's tensors say, 0 until they are looked at.
    pub(super) feed: usize,
    pub(super) context: usize,
    pub(super) epsilon: f32,
    /// Norms with mean and bias instead of root mean square alone.
    pub(super) has_layer_norm: bool,
    pub(super) order: Order,
    /// Added to the weights of norms.
    pub(super) norm_shift: f32,
    pub(super) pairs: Pairs,
    /// None: positions are embedded.
    pub(super) rope: Option<Rope>,
    pub(super) llama3: Option<Llama3Scaling>,
    /// Of layers that see a window only.
    pub(super) local_rope: Option<Rope>,
    pub(super) window: usize,
    /// Per layer: whether it sees a window only.
    pub(super) is_local: Vec<bool>,
    pub(super) is_causal: bool,
    pub(super) attention_scale: f32,
    pub(super) activation: Activation,
    pub(super) embedding_scale: f32,
    /// Logits are bent to stay within it.
    pub(super) logit_cap: Option<f32>,
    pub(super) pooling: Option<Pooling>,
}

/// Beyond it, a size is a mistake or an attack.
const LARGEST: f64 = 16_777_216.0;

const KNOWN: &str = "llama, qwen2, qwen3, gemma3 and bert";

impl Config {
    /// What llama does, with sizes still to be set.
    pub(super) fn plain(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            width: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            feed: 0,
            context: 2048,
            epsilon: 1e-5,
            has_layer_norm: false,
            order: Order::Before,
            norm_shift: 0.0,
            pairs: Pairs::Halves,
            rope: None,
            llama3: None,
            local_rope: None,
            window: 0,
            is_local: Vec::new(),
            is_causal: true,
            attention_scale: 0.0,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            logit_cap: None,
            pooling: None,
        }
    }

    /// What layer `index` looks at.
    pub(super) fn reach(&self, index: usize) -> Reach {
        match (self.is_causal, self.is_local[index]) {
            (false, _) => Reach::All,
            (true, true) => Reach::Window(self.window),
            (true, false) => Reach::Before,
        }
    }

    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Self, String> {
        let architecture = gguf.text("general.architecture").unwrap_or_default();
        let get = |key: &str| gguf.number(&format!("{architecture}.{key}"));
        let size = |key: &str| match get(key) {
            Some(size) if (1.0..=LARGEST).contains(&size) => Ok(size as usize),
            Some(size) => Err(format!("`{architecture}.{key}` is {size}, which is no size")),
            None => Err(format!("`{architecture}.{key}` is missing")),
        };
        let mut config = Self::plain(&architecture);
        config.width = size("embedding_length")?;
        config.layers = size("block_count")?;
        config.heads = size("attention.head_count")?;
        config.kv_heads = size("attention.head_count_kv").unwrap_or(config.heads);
        config.head_dim = size("attention.key_length").unwrap_or(config.width / config.heads);
        config.context = size("context_length")?;
        let epsilon = get("attention.layer_norm_rms_epsilon").or(get("attention.layer_norm_epsilon"));
        config.epsilon = epsilon.unwrap_or(1e-5) as f32;
        let scaled = gguf.text(&format!("{architecture}.rope.scaling.type")).as_deref() == Some("linear");
        let factor = get("rope.scaling.factor").filter(|_| scaled).unwrap_or(1.0) as f32;
        config.rope = Some(Rope {
            base: get("rope.freq_base").unwrap_or(10_000.0) as f32,
            factor,
        });
        config.is_local = vec![false; config.layers];
        config.logit_cap = get("final_logit_softcapping").map(|cap| cap as f32);
        config.pooling = match get("pooling_type").map(|kind| kind as u32) {
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::First),
            Some(3) => Some(Pooling::Last),
            _ => None,
        };
        match architecture.as_str() {
            "llama" => config.pairs = Pairs::Neighbours,
            "qwen2" | "qwen3" => {}
            "gemma3" => {
                let local = get("rope.freq_base_swa").unwrap_or(10_000.0) as f32;
                let window = size("attention.sliding_window").unwrap_or(0);
                config.gemma3(window, local, 6);
            }
            "bert" => config.bert(get("attention.causal").is_some_and(|causal| causal != 0.0)),
            other => {
                return Err(format!("its architecture is `{other}`; this build runs {KNOWN}"));
            }
        }
        config.check()
    }

    fn gemma3(&mut self, window: usize, local_base: f32, pattern: usize) {
        self.order = Order::Around;
        self.activation = Activation::GeluTanh;
        self.embedding_scale = (self.width as f32).sqrt();
        self.window = window;
        self.local_rope = Some(Rope {
            base: local_base,
            factor: 1.0,
        });
        if window > 0 {
            self.is_local = (0..self.layers).map(|layer| (layer + 1) % pattern != 0).collect();
        }
    }

    fn bert(&mut self, is_causal: bool) {
        self.rope = None;
        self.has_layer_norm = true;
        self.order = Order::After;
        self.activation = Activation::GeluErf;
        self.is_causal = is_causal;
        self.pooling = self.pooling.or(Some(Pooling::Mean));
    }

    /// `config.json` of a model in Hugging Face's layout.
    pub(super) fn from_json(config: &Value) -> Result<Self, String> {
        // Models of more than text keep the text model's settings apart.
        let config = config.get("text_config").unwrap_or(config);
        let kind = config["model_type"].as_str().unwrap_or_default();
        let architecture = match kind {
            "gemma3_text" => "gemma3",
            other => other,
        };
        let size = |key: &str| {
            config[key]
                .as_u64()
                .filter(|size| *size > 0 && *size as f64 <= LARGEST)
                .map(|size| size as usize)
                .ok_or_else(|| format!("`{key}` is missing from config.json, or no size"))
        };
        let float = |key: &str| config[key].as_f64().map(|number| number as f32);
        let mut out = Self::plain(architecture);
        out.width = size("hidden_size")?;
        out.layers = size("num_hidden_layers")?;
        out.heads = size("num_attention_heads")?;
        out.kv_heads = size("num_key_value_heads").unwrap_or(out.heads);
        out.head_dim = size("head_dim").unwrap_or(out.width / out.heads);
        out.context = size("max_position_embeddings").unwrap_or(2048);
        out.epsilon = float("rms_norm_eps").or(float("layer_norm_eps")).unwrap_or(1e-5);
        out.is_local = vec![false; out.layers];
        out.logit_cap = float("final_logit_softcapping");
        let rope = rope_settings(config, "full_attention");
        out.rope = Some(linear_rope(&rope, float("rope_theta").unwrap_or(10_000.0)));
        out.llama3 = llama3_scaling(&rope);
        match architecture {
            "llama" | "qwen2" | "qwen3" => {
                if config["use_sliding_window"].as_bool() == Some(true) {
                    return Err(
                        "it uses a sliding window in some layers, which this build knows of gemma3 only"
                            .into(),
                    );
                }
            }
            "gemma3" => {
                let local = rope_settings(config, "sliding_attention")["rope_theta"].as_f64();
                let local = local.map(|base| base as f32).or(float("rope_local_base_freq"));
                let pattern = size("sliding_window_pattern").or(size("_sliding_window_pattern"));
                let window = size("sliding_window").unwrap_or(0);
                out.gemma3(window, local.unwrap_or(10_000.0), pattern.unwrap_or(6));
                if let Some(types) = config["layer_types"].as_array() {
                    out.is_local = types.iter().map(|kind| kind == "sliding_attention").collect();
                }
                out.norm_shift = 1.0;
                out.attention_scale = float("query_pre_attn_scalar").map_or(0.0, |scalar| scalar.powf(-0.5));
            }
            "bert" => {
                out.bert(false);
                if config["hidden_act"].as_str().is_some_and(|act| act != "gelu") {
                    out.activation = Activation::GeluTanh;
                }
            }
            other => {
                return Err(format!("its model_type is `{other}`; this build runs {KNOWN}"));
            }
        }
        out.check()
    }

    pub(super) fn check(mut self) -> Result<Self, String> {
        let Self { heads, kv_heads, .. } = self;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || self.head_dim == 0 || self.head_dim % 2 == 1 {
            return Err(format!(
                "{heads} heads of {} on {kv_heads} key heads make no sense",
                self.head_dim
            ));
        }
        if self.is_local.len() != self.layers {
            return Err(format!(
                "kinds of {} layers are told of {}",
                self.is_local.len(),
                self.layers
            ));
        }
        if self.attention_scale == 0.0 {
            self.attention_scale = (self.head_dim as f32).powf(-0.5);
        }
        Ok(self)
    }

    /// Angle per position of each pair, for layers that see everything or a window; `divisors` of a file come on top.
    pub(super) fn frequencies(&self, rope: &Rope, divisors: Option<&[f32]>) -> Vec<f32> {
        let pairs = self.head_dim / 2;
        (0..pairs)
            .map(|pair| {
                let exponent = -(pair as f64) / pairs as f64;
                let frequency = f64::from(rope.base).powf(exponent) as f32 / rope.factor;
                let divisor = divisors.and_then(|divisors| divisors.get(pair)).copied();
                match (divisor, &self.llama3) {
                    (Some(divisor), _) => frequency / divisor,
                    (None, Some(scaling)) => scaling.scale(frequency),
                    (None, None) => frequency,
                }
            })
            .collect()
    }
}

impl Llama3Scaling {
    /// Slow pairs turn slower, fast ones do not, and those between in between.
    fn scale(&self, frequency: f32) -> f32 {
        let wave = 2.0 * std::f32::consts::PI / frequency;
        let (long, short) = (
            self.original_context / self.low,
            self.original_context / self.high,
        );
        if wave < short {
            return frequency;
        }
        if wave > long {
            return frequency / self.factor;
        }
        let smooth = (self.original_context / wave - self.low) / (self.high - self.low);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

/// Settings of the rotation: older files name them `rope_scaling`, newer ones `rope_parameters`, by kind of layer where
/// kinds differ.
fn rope_settings(config: &Value, kind: &str) -> Value {
    let all = [&config["rope_parameters"], &config["rope_scaling"]]
        .into_iter()
        .find(|settings| settings.is_object());
    let Some(all) = all else { return Value::Null };
    let of_kind = &all[kind];
    if of_kind.is_object() {
        of_kind.clone()
    } else {
        all.clone()
    }
}

fn linear_rope(settings: &Value, base: f32) -> Rope {
    let kind = settings["rope_type"].as_str().or(settings["type"].as_str());
    let factor = settings["factor"].as_f64().filter(|_| kind == Some("linear"));
    Rope {
        base: settings["rope_theta"].as_f64().map_or(base, |base| base as f32),
        factor: factor.unwrap_or(1.0) as f32,
    }
}

fn llama3_scaling(settings: &Value) -> Option<Llama3Scaling> {
    if settings["rope_type"] != "llama3" {
        return None;
    }
    let number = |key: &str| settings[key].as_f64().map(|number| number as f32);
    Some(Llama3Scaling {
        factor: number("factor")?,
        low: number("low_freq_factor")?,
        high: number("high_freq_factor")?,
        original_context: number("original_max_position_embeddings")?,
    })
}
