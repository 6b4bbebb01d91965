//! The predictor as a whole: learning, files, strange prompts, stored features.

use super::train::{Example, Outcome, Recipe, Stored, extend, train};
use super::*;
use proptest::prelude::*;

fn columns() -> Vec<Column> {
    let column = |model: &str, class, beyond: Option<&str>| Column {
        model: model.into(),
        class,
        thinks_beyond: beyond.map(Into::into),
    };
    vec![
        column("small", BackendClass::Cheap, None),
        column("big", BackendClass::Frontier, None),
        column("small-thinking", BackendClass::Cheap, Some("small")),
    ]
}

/// Two kinds of prompts: sums, which all can do, and code, which defeats `small` the oftener the longer it is.
fn examples(count: usize) -> Vec<Example> {
    let mut draws = Draws::new(11);
    let mut example = |at: usize| {
        let size = 1 + draws.below(12);
        let code = at.is_multiple_of(2);
        let text = if code {
            let lines: Vec<String> = (0..size)
                .map(|l| format!("    x[{l}] = f(y[{}:{l}])", draws.below(9)))
                .collect();
            format!("def g(x, y):\n{}\nassert g([1], 'ab') == ??", lines.join("\n"))
        } else {
            let parts: Vec<String> = (0..size)
                .map(|_| format!("{} apples and", draws.below(90)))
                .collect();
            format!("Ann buys {} a pear. How many fruits has she?", parts.join(" "))
        };
        let hard = if code { size as f64 / 14.0 } else { 0.05 };
        let mut right = |p: f64| {
            Some(Outcome {
                correct: draws.unit() < p,
                output_characters: Some(100),
            })
        };
        let outcomes = vec![right(1.0 - hard), right(0.95), right(1.0 - hard / 3.0)];
        let domain = if code { "code" } else { "sums" };
        Example {
            text,
            domain: domain.into(),
            group: at.to_string(),
            outcomes,
        }
    };
    (0..count).map(&mut example).collect()
}

fn recipe() -> Recipe {
    Recipe {
        trees: 20,
        ease_penalty: 30.0,
        direct_penalty: 30.0,
        ..Recipe::default()
    }
}

fn predictor() -> Predictor {
    static MODEL: std::sync::LazyLock<Predictor> = std::sync::LazyLock::new(|| {
        Predictor::new(train(&examples(400), columns(), recipe()).unwrap()).unwrap()
    });
    MODEL.clone()
}

const LONG_CODE: &str = "def g(x, y):\n    x[0] = f(y[1:0])\n    x[1] = f(y[2:1])\n    x[2] = f(y[3:2])\n    x[3] = f(y[4:3])\n    \
     x[4] = f(y[5:4])\n    x[5] = f(y[6:5])\n    x[6] = f(y[7:6])\n    x[7] = f(y[8:7])\n    x[8] = f(y[0:8])\nassert g([1], 'ab') == ??";
const SUM: &str = "Ann buys 3 apples and 41 apples and a pear. How many fruits has she?";

#[test]
fn what_decides_between_models_is_learned() {
    let predictor = predictor();
    let (code, sum) = (predictor.predict(LONG_CODE), predictor.predict(SUM));
    assert!(code.gain(0, 1) > 0.25, "{:?}", code.columns);
    assert!(sum.gain(0, 1).abs() < 0.15, "{:?}", sum.columns);
    let cheap = |prediction| {
        predictor
            .classes(prediction)
            .into_iter()
            .find(|c| c.class == BackendClass::Cheap)
            .unwrap()
    };
    assert!(cheap(&code).thinking_gain.unwrap().p > cheap(&sum).thinking_gain.unwrap().p + 0.1);
    assert!((cheap(&sum).success.p - 0.95).abs() < 0.1);
    assert!(
        predictor
            .classes(&code)
            .iter()
            .all(|class| class.class != BackendClass::Local)
    );
}

#[test]
fn prompts_of_a_kind_never_seen_are_said_to_be_unfamiliar() {
    let predictor = predictor();
    assert!(predictor.predict(LONG_CODE).familiarity > 0.5);
    assert!(predictor.predict(SUM).familiarity > 0.5);
    let strange = [
        "",
        "\u{4f60}\u{597d}\u{ff0c}\u{8bf7}\u{5e2e}\u{6211}\u{5199}\u{4e00}\u{9996}\u{8bd7}",
        "<html><body class=\"a\"><p style='x'>%$%$ {{{{ ;;;; }}}} ^^^^ \\\\ ____ </p></body></html>",
    ];
    for prompt in strange {
        assert!(predictor.predict(prompt).familiarity < 0.5, "{prompt}");
    }
}

#[test]
fn other_languages_are_unfamiliar_to_the_shipped_model() {
    let shipped = Predictor::shipped().unwrap();
    for prompt in [
        "如何用 Rust 写一个无锁队列？请解释内存顺序。",
        "Сколько будет 17 умножить на 23? Покажи, как ты считал, и дай ответ.",
        "Wie viel ist 17 mal 23? Erkläre, wie du es ausgerechnet hast.",
        "Écris une fonction Python qui inverse une liste chaînée.",
        "Escribe un correo a mi casero sobre la calefacción rota.",
        "λ∘μ ≔ ⟦π⟧ ⊢ ∀x∃y λ∘μ ≔ ⟦π⟧ ⊢ ∀x∃y λ∘μ ≔ ⟦π⟧ ⊢ ∀x∃y",
    ] {
        let familiarity = shipped.predict(prompt).familiarity;
        assert!(familiarity < 0.5, "{prompt}: {familiarity}");
    }
    assert!(
        shipped
            .predict("What is 17 times 23? Explain how you computed it, step by step.")
            .familiarity
            > 0.5
    );
}

#[test]
fn the_same_examples_give_the_same_file_and_a_file_the_same_answers() {
    let model = train(&examples(400), columns(), recipe()).unwrap();
    let bytes = Predictor::new(model).unwrap().save().unwrap();
    assert_eq!(bytes, predictor().save().unwrap());
    let read = Predictor::load(&bytes).unwrap();
    assert_eq!(read.predict(SUM).columns, predictor().predict(SUM).columns);
}

#[test]
fn damaged_files_are_refused() {
    let bytes = predictor().save().unwrap();
    assert!(matches!(
        Predictor::load(b"something else"),
        Err(LoadError::Format)
    ));
    assert!(matches!(
        Predictor::load(&bytes[..bytes.len() / 2]),
        Err(LoadError::Damaged(_))
    ));
    let mut model = predictor().model().clone();
    model.words.weights.pop();
    assert!(matches!(Predictor::new(model), Err(LoadError::Shape(_))));
}

#[test]
fn stored_features_answer_as_the_prompt_does_and_teach_a_workflow() {
    let predictor = predictor();
    let prediction = predictor.predict(LONG_CODE);
    assert_eq!(
        predictor.predict_features(prediction.features.clone()).columns,
        prediction.columns
    );
    assert_eq!(predictor.predict_features(vec![1.0; 3]).familiarity, 0.0);
    // A workflow of short mails, unknown before, on which `big` nearly always fails.
    let mail = |at: usize| {
        format!(
            "Dear Mr {at}, please; find: enclosed (as asked) the {} invoices. Yours!",
            at % 17
        )
    };
    let stored: Vec<Stored> = (0..300)
        .map(|at| Stored {
            features: predictor.predict(&mail(at)).features,
            workflow: "mail".into(),
            group: at.to_string(),
            outcomes: vec![
                Some(Outcome {
                    correct: at % 10 != 0,
                    output_characters: None,
                }),
                Some(Outcome {
                    correct: at % 10 == 0,
                    output_characters: None,
                }),
                None,
            ],
        })
        .collect();
    let extended = extend(predictor.model().clone(), &stored, columns(), recipe()).unwrap();
    let extended = Predictor::new(extended).unwrap();
    let mails = extended.predict(&mail(7));
    assert!(mails.gain(0, 1) < -0.5, "{:?}", mails.columns);
    assert!(extended.predict(LONG_CODE).gain(0, 1) > 0.25);
    let short = Stored {
        features: vec![0.0; 3],
        ..stored[0].clone()
    };
    let error = extend(predictor.model().clone(), &vec![short; 200], columns(), recipe()).unwrap_err();
    assert!(error.to_string().starts_with("record 1: 3 features"), "{error}");
}

#[test]
fn the_shipped_model_loads_and_knows_its_classes() {
    let predictor = Predictor::shipped().unwrap();
    let classes = predictor.classes(&predictor.predict(SUM));
    for class in [BackendClass::Cheap, BackendClass::Frontier, BackendClass::Local] {
        let found = classes.iter().find(|known| known.class == class).unwrap();
        assert!((0.5..=1.0).contains(&found.success.p), "{found:?}");
        assert!(found.thinking_gain.is_some());
    }
}

proptest! {
    #[test]
    fn any_prompt_gets_probabilities(text in any::<String>()) {
        let prediction = predictor().predict(&text);
        prop_assert!((0.0..=1.0).contains(&prediction.familiarity));
        for success in prediction.columns.iter().flatten() {
            prop_assert!((0.0..=1.0).contains(&success.p) && success.error.is_finite() && success.error >= 0.0);
        }
    }
}
