//! The rows against the column rules of the FOCUS specification, version 1.2, and against the charges they are from.

use super::*;
use exchange::Rate;
use ledger::BilledLine;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use std::collections::HashMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// November 2026.
const PERIOD: Range<i64> = 1_793_491_200_000_000..1_796_083_200_000_000;

/// Charges of every kind, a few thousand, from their number alone.
fn calls() -> Vec<Billed> {
    let call = |number: i64| {
        let (input, output) = (100 + number * 7919 % 1900, 10 + number * 104_729 % 500);
        let (rin, rout) = (150_001 * (1 + number % 3), 600_007 * (1 + number % 3));
        let amount = |picos: i64| (picos + 999) / 1000;
        let (first, total) = (amount(input * rin), amount(input * rin + output * rout));
        let line = |item: &str, quantity: i64, rate: i64, amount: i64| BilledLine {
            item: item.into(),
            quantity: quantity.unsigned_abs(),
            rate: Rate(rate.unsigned_abs()),
            amount: Money::from_nanos(amount),
        };
        let mut lines = vec![
            line("input", input, rin, first),
            line("output", output, rout, total - first),
        ];
        let mut charge = total;
        if number % 11 == 0 {
            charge += 10_000_000;
            lines.push(line("web_search", 1, 10_000_000_000, 10_000_000));
        }
        if number % 13 == 0 {
            lines.clear();
        }
        let part = |name: &str, every: i64| (number % every != 0).then(|| format!("{name}{}", number % 3));
        Billed {
            started_us: PERIOD.start + number * 777_777_777,
            account: [
                Some("acme".into()),
                part("team, \"", 2),
                part("flow", 3),
                part("key", 5),
            ],
            deployment: "d".into(),
            provider: "openai".into(),
            model: format!("m{}", number % 4),
            class: "cheap".into(),
            tier: ["standard", "flex"][(number % 2) as usize].into(),
            value: "high".into(),
            origin: "live".into(),
            outcome: "answered".into(),
            price_version: "v1".into(),
            charge: Money::from_nanos(charge),
            lines,
        }
    };
    (0..3_000).map(call).collect()
}

fn focus() -> Focus {
    let mut focus = Focus::new(PERIOD);
    calls().into_iter().for_each(|call| focus.add(call));
    focus
}

type Table = (Vec<String>, Vec<HashMap<String, String>>);

fn csv_table(focus: &Focus) -> Table {
    let mut out = Vec::new();
    write_csv(focus, &mut out).unwrap();
    let mut reader = csv::Reader::from_reader(out.as_slice());
    let names: Vec<String> = reader.headers().unwrap().iter().map(ToOwned::to_owned).collect();
    let rows = reader.records().map(|row| {
        let row = row.unwrap();
        names
            .iter()
            .cloned()
            .zip(row.iter().map(ToOwned::to_owned))
            .collect()
    });
    let rows = rows.collect();
    (names, rows)
}

/// A decimal as a number of 10⁻¹²; panics at an exponent, a sign of plus or a thousands separator.
fn picos(text: &str) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    assert!(fraction.len() <= 12 && !whole.is_empty(), "{text}");
    assert!(
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'-'),
        "{text}"
    );
    format!("{whole}{fraction:0<12}").parse().unwrap()
}

#[test]
fn the_rows_sum_to_the_charges_to_the_nano_dollar() {
    let focus = focus();
    let total: Money = calls().iter().map(|call| call.charge).sum();
    assert_eq!(focus.billed(), total);
    let (_, rows) = csv_table(&focus);
    let billed: i128 = rows.iter().map(|row| picos(&row["BilledCost"])).sum();
    assert_eq!(billed, i128::from(total.nanos()) * 1_000);
    // What is billed was rounded up once a charge; the list cost is exact.
    let listed: i128 = rows.iter().map(|row| picos(&row["ListCost"])).sum();
    assert!(
        listed <= billed && billed - listed < 3_000 * 1_000,
        "{billed} {listed}"
    );
    assert!(rows.len() < calls().len() * 2);
}

/// Present and never null; those that may be null are left out. Section "Columns" of the specification.
const NOT_NULL: [&str; 22] = [
    "BilledCost",
    "BillingAccountId",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    // Of usage that is no correction.
    "ListUnitPrice",
    "PricingQuantity",
    "SkuPriceId",
];
/// Present, and may be null.
const PRESENT: [&str; 17] = [
    "BillingAccountName",
    "ChargeClass",
    "ChargeDescription",
    "PricingUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "PricingCategory",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
];

#[test]
fn the_columns_are_those_of_the_specification_in_its_order() {
    let (names, _) = csv_table(&focus());
    for name in NOT_NULL.iter().chain(&PRESENT) {
        assert!(names.iter().any(|known| known == name), "{name} is missing");
    }
    let (own, theirs): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.starts_with("x_"));
    assert_eq!(
        theirs.len(),
        NOT_NULL.len() + PRESENT.len(),
        "a column that the specification does not know"
    );
    assert!(
        theirs.is_sorted()
            && own.is_sorted()
            && names[theirs.len()..].iter().all(|name| name.starts_with("x_"))
    );
    // Pascal case, custom columns behind their prefix.
    assert!(
        names
            .iter()
            .all(|name| name.trim_start_matches("x_").starts_with(char::is_uppercase))
    );
}

#[test]
fn every_row_keeps_the_column_rules() {
    let (_, rows) = csv_table(&focus());
    let mut prices: HashMap<String, String> = HashMap::new();
    for row in &rows {
        let of = |name: &str| row[name].as_str();
        for name in NOT_NULL {
            assert!(!of(name).is_empty(), "{name} is null");
        }
        assert!(
            row.values().all(|value| value == value.trim()),
            "strings without space around them"
        );
        assert_eq!((of("ChargeCategory"), of("ChargeClass")), ("Usage", ""));
        assert!(["One-Time", "Recurring", "Usage-Based"].contains(&of("ChargeFrequency")));
        assert!(["Standard", "Dynamic", "Committed", "Other"].contains(&of("PricingCategory")));
        assert_eq!(
            (of("ServiceCategory"), of("ServiceSubcategory")),
            ("AI and Machine Learning", "Generative AI")
        );
        assert!(of("BillingCurrency").len() == 3 && of("BillingCurrency").chars().all(char::is_uppercase));

        let moment = |name: &str| {
            let text = of(name);
            assert!(text.ends_with('Z'), "{name} is in UTC");
            OffsetDateTime::parse(text, &Rfc3339).unwrap()
        };
        let (period, charge) = (
            (moment("BillingPeriodStart"), moment("BillingPeriodEnd")),
            (moment("ChargePeriodStart"), moment("ChargePeriodEnd")),
        );
        assert!(period.0 <= charge.0 && charge.0 < charge.1 && charge.1 <= period.1);

        let quantity = picos(of("PricingQuantity"));
        assert!(picos(of("ListUnitPrice")) >= 0 && quantity > 0);
        assert_eq!(
            picos(of("ListUnitPrice")) * (quantity / ONE),
            picos(of("ListCost")),
            "price times quantity"
        );
        assert_eq!(
            of("EffectiveCost"),
            of("BilledCost"),
            "nothing is paid for in advance"
        );
        assert_eq!(
            (of("ConsumedQuantity"), of("ConsumedUnit")),
            (of("PricingQuantity"), of("PricingUnit"))
        );
        assert!(!of("PricingUnit").is_empty() && !of("SkuId").is_empty() && !of("SkuMeter").is_empty());
        // One price has one SKU and one amount for ever.
        let priced = format!("{} {}", of("SkuId"), of("ListUnitPrice"));
        let known = prices
            .entry(of("SkuPriceId").to_owned())
            .or_insert_with(|| priced.clone());
        assert_eq!(*known, priced);
        // A sub account has an id, a name and a type, or none of them.
        let sub = ["SubAccountId", "SubAccountName", "SubAccountType"].map(|name| of(name).is_empty());
        assert!(sub == [true; 3] || sub == [false; 3]);

        for name in ["Tags", "SkuPriceDetails"] {
            let value: serde_json::Value = serde_json::from_str(of(name)).unwrap();
            let object = value.as_object().unwrap();
            assert!(
                object
                    .values()
                    .all(|value| value.is_string() || value.is_number() || value.is_boolean()),
                "{name}"
            );
        }
    }
    assert!(
        rows.iter().any(|row| row["PricingUnit"] == "Searches")
            && rows.iter().any(|row| row["x_Item"].is_empty())
    );
}

#[test]
fn parquet_holds_what_csv_does() {
    let focus = focus();
    let mut out = Vec::new();
    write_parquet(&focus, &mut out).unwrap();
    let reader = SerializedFileReader::new(bytes::Bytes::from(out)).unwrap();
    let (names, rows) = csv_table(&focus);
    let schema = reader.metadata().file_metadata().schema_descr();
    let written: Vec<&str> = schema.columns().iter().map(|column| column.name()).collect();
    assert_eq!(written, names);
    let mut count = 0;
    for (read, row) in reader.get_row_iter(None).unwrap().zip(&rows) {
        for (name, field) in read.unwrap().get_column_iter() {
            let told = match field {
                Field::Null => String::new(),
                Field::Str(text) => text.clone(),
                Field::Decimal(number) => {
                    let scaled = i128::from_be_bytes(number.data().try_into().unwrap());
                    assert_eq!(scaled, picos(&row[name]), "{name}");
                    row[name].clone()
                }
                Field::TimestampMicros(us) => {
                    let at = OffsetDateTime::from_unix_timestamp(us / 1_000_000).unwrap();
                    at.format(&Rfc3339).unwrap()
                }
                other => panic!("{name} is {other:?}"),
            };
            assert_eq!(told, row[name], "{name}");
        }
        count += 1;
    }
    assert_eq!(count, rows.len());
}
