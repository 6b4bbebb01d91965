//! Small models of every architecture against what transformers makes of them in float32, through the loader, from files
//! written here. `fixtures/tiny.py` makes the expectations; weights come from the tensors' names on both sides.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use engine::backend::{Output, Row, StepEnd, Want};
use engine::model::{Loaded, load};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const FIXTURE: &str = include_str!("fixtures/tiny.json");

fn noise(name: &str) -> impl Iterator<Item = f64> {
    let start = name.bytes().fold(2_166_136_261u32, |state, byte| {
        (state ^ u32::from(byte)).wrapping_mul(16_777_619)
    });
    let step = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(start), step)
        .skip(1)
        .map(|state| f64::from((state >> 8) % 2000) / 1000.0 - 1.0)
}

fn weights(name: &str, shape: &[usize], is_gemma: bool) -> Vec<f32> {
    let change: Box<dyn Fn(f64) -> f64> = if name.to_lowercase().contains("norm") && name.ends_with("weight")
    {
        let middle = if is_gemma { 0.0 } else { 1.0 };
        Box::new(move |value| middle + 0.3 * value)
    } else if shape.len() == 1 {
        Box::new(|value| 0.2 * value)
    } else if name.contains("embed") {
        Box::new(|value| value)
    } else {
        let scale = 1.7 / (shape[1] as f64).sqrt();
        Box::new(move |value| scale * value)
    };
    let count = shape.iter().product();
    noise(name)
        .take(count)
        .map(|value| change(value) as f32)
        .collect()
}

/// How a file's floats are kept.
#[derive(Clone, Copy)]
enum Kind {
    F32,
    F16,
    Bf16,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    fn bytes(self, value: f32) -> Vec<u8> {
        match self {
            Self::F32 => value.to_le_bytes().to_vec(),
            Self::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            Self::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        }
    }
}

/// Writes a model in Hugging Face's layout.
fn write(folder: &Path, case: &Value, kind: Kind) {
    let config = &case["config"];
    let is_gemma = config["model_type"].as_str().unwrap().starts_with("gemma");
    let (mut head, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in case["tensors"].as_object().unwrap() {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        let start = data.len();
        data.extend(
            weights(name, &shape, is_gemma)
                .into_iter()
                .flat_map(|value| kind.bytes(value)),
        );
        head.insert(
            name.clone(),
            json!({ "dtype": kind.name(), "shape": shape, "data_offsets": [start, data.len()] }),
        );
    }
    let head = Value::from(head).to_string();
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend(head.as_bytes());
    file.extend(data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let names = (0..64).map(|id| {
        if id == 0 {
            "[UNK]".to_owned()
        } else {
            format!("t{id}")
        }
    });
    let vocabulary: serde_json::Map<String, Value> =
        names.zip(0u32..).map(|(name, id)| (name, id.into())).collect();
    let model = if config["model_type"] == "bert" {
        json!({ "type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary })
    } else {
        json!({ "type": "BPE", "vocab": vocabulary, "merges": [] })
    };
    let tokenizer = json!({ "model": model, "pre_tokenizer": { "type": "ByteLevel" }, "added_tokens": [] });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn open(case: &Value, kind: Kind) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), case, kind);
    load(folder.path(), 2).unwrap_or_else(|error| panic!("{error}"))
}

/// The model's answer in the form of the fixture: logits after each token, in steps of `chunk` tokens, or the embedding.
fn answer(model: &mut Loaded, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    if !model.info.generates {
        let ended = model.backend.embed(&[tokens], &AtomicBool::new(false), &mut out);
        assert_eq!(ended, Some(StepEnd::Done));
        return vec![out];
    }
    model.backend.allocate(8).unwrap();
    // Blocks that lie apart and backwards.
    let blocks = [5, 1, 3];
    let (mut rows, mut output) = (Vec::new(), Output::default());
    for start in (0..tokens.len()).step_by(chunk) {
        let end = (start + chunk).min(tokens.len());
        let step: Vec<Row<'_>> = (start..end)
            .map(|at| Row {
                tokens: &tokens[at..=at],
                first: at,
                blocks: &blocks,
                wants: Want::Logits,
            })
            .collect();
        model.backend.step(&step, &AtomicBool::new(false), &mut output);
        rows.extend(
            output
                .logits
                .chunks_exact(model.info.vocabulary)
                .map(<[f32]>::to_vec),
        );
    }
    rows
}

/// The largest difference, as a part of the largest value.
fn difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs
        .iter()
        .flatten()
        .fold(0.0f32, |largest, value| largest.max(value.abs()));
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

fn cases() -> Vec<Value> {
    serde_json::from_str(FIXTURE).unwrap()
}

#[test]
fn every_architecture_answers_as_transformers_does() {
    for case in cases() {
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let expected: Vec<Vec<f32>> = serde_json::from_value(case["result"].clone()).unwrap();
        let mut model = open(&case, Kind::F32);
        let whole = answer(&mut model, &tokens, 24);
        let apart = difference(&whole, &expected);
        assert!(apart <= 1e-4, "{}: {apart}", case["name"]);
        assert_eq!(
            answer(&mut model, &tokens, 5),
            whole,
            "{} depends on its chunks",
            case["name"]
        );
        for (kind, allowed) in [(Kind::F16, 0.01), (Kind::Bf16, 0.08)] {
            let apart = difference(&answer(&mut open(&case, kind), &tokens, 24), &expected);
            assert!(apart <= allowed, "{} in {}: {apart}", case["name"], kind.name());
        }
    }
}

#[test]
fn a_sequence_in_one_row_gives_the_same_as_token_by_token() {
    for case in cases().iter().filter(|case| case["name"] != "bert") {
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let mut model = open(case, Kind::F32);
        let last = answer(&mut model, &tokens, 1).pop().unwrap();
        let row = Row {
            tokens: &tokens,
            first: 0,
            blocks: &[2, 7],
            wants: Want::Logits,
        };
        let mut out = Output::default();
        model.backend.step(&[row], &AtomicBool::new(false), &mut out);
        assert_eq!(out.logits, last, "{}", case["name"]);
    }
}

#[test]
fn embeddings_do_not_depend_on_their_company() {
    let cases = cases();
    let case = cases.iter().find(|case| case["name"] == "bert").unwrap();
    let mut model = open(case, Kind::F32);
    let (first, second) = (vec![3, 9, 27, 50], (0..40).collect::<Vec<u32>>());
    let (mut both, mut alone) = (Vec::new(), Vec::new());
    let abort = AtomicBool::new(false);
    model.backend.embed(&[&first, &second], &abort, &mut both);
    model.backend.embed(&[&second], &abort, &mut alone);
    assert_eq!(both[64..], alone[..]);
    assert!((both[..64].iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
    assert_eq!(
        model.backend.embed(&[&first], &AtomicBool::new(true), &mut alone),
        Some(StepEnd::Aborted)
    );
}

#[test]
fn broken_files_are_refused_with_what_is_wrong() {
    let cases = cases();
    let case = &cases[0];
    let refused = |change: &dyn Fn(&Path), expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), case, Kind::F32);
        change(folder.path());
        let error = load(folder.path(), 1).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let weights = |folder: &Path| folder.join("model.safetensors");
    refused(
        &|folder| std::fs::write(weights(folder), [9; 20]).unwrap(),
        "shorter than its head says",
    );
    refused(
        &|folder| {
            let bytes = std::fs::read(weights(folder)).unwrap();
            std::fs::write(weights(folder), &bytes[..bytes.len() - 1]).unwrap();
        },
        "does not lie within the file",
    );
    refused(
        &|folder| std::fs::remove_file(folder.join("config.json")).unwrap(),
        "config.json",
    );
    refused(
        &|folder| {
            let mut config = case["config"].clone();
            config["model_type"] = "mamba".into();
            std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        },
        "this build runs llama, qwen2, qwen3, gemma3 and bert",
    );
    refused(
        &|folder| {
            let mut config = case["config"].clone();
            config["num_hidden_layers"] = 3.into();
            std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        },
        "blk.2.ffn_up.weight` is missing",
    );
}
