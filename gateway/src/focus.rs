//! The ledger as FOCUS, the FinOps Foundation's format for cost and usage, version 1.2.
//!
//! Owns: what each column means here, and the grouping of charges into rows. Refuses to know: where charges are from, files
//! (`file`). Invariants: every amount is an exact decimal; the sum of BilledCost is the sum of the charges to the nano-dollar;
//! ListUnitPrice times PricingQuantity is ListCost exactly, which is BilledCost before each charge was rounded up.

mod file;
#[cfg(test)]
mod tests;

pub(crate) use file::{write_csv, write_parquet};

use exchange::Money;
use ledger::Billed;
use std::collections::BTreeMap;
use std::ops::Range;

pub(crate) const DAY_US: i64 = 24 * 3_600_000_000;
const PICOS_PER_NANO: i128 = 1_000;
/// Decimals are in units of 10⁻¹².
const ONE: i128 = 1_000_000_000_000;

/// What rows differ in: a day, an account, a target, a tier, a price.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    day_us: i64,
    account: [Option<String>; 4],
    provider: String,
    model: String,
    deployment: String,
    class: String,
    tier: String,
    value: String,
    origin: String,
    outcome: String,
    price_version: String,
    /// `None`: a charge that was set as a whole.
    item: Option<String>,
    /// Pico-dollars for one.
    rate: i128,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    quantity: i128,
    billed_nanos: i128,
}

/// The rows of a billing period.
#[derive(Debug)]
pub(crate) struct Focus {
    period: Range<i64>,
    rows: BTreeMap<Key, Sums>,
}

/// What stands in a column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Null,
    Text(String),
    /// In units of 10⁻¹².
    Decimal(i128),
    /// Microseconds since the epoch.
    Moment(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Decimal,
    Moment,
}

/// A column: its name, what is in it, whether it may be null, and where it is from.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) nullable: bool,
    of: fn(&Row<'_>) -> Cell,
}

struct Row<'a> {
    period: &'a Range<i64>,
    key: &'a Key,
    sums: Sums,
}

impl Focus {
    /// An empty set of rows for requests that arrived in `period`, in microseconds since the epoch.
    pub(crate) fn new(period: Range<i64>) -> Self {
        Self {
            period,
            rows: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, call: Billed) {
        let key = Key {
            day_us: call.started_us.div_euclid(DAY_US) * DAY_US,
            account: call.account,
            provider: call.provider,
            model: call.model,
            deployment: call.deployment,
            class: call.class,
            tier: call.tier,
            value: call.value,
            origin: call.origin,
            outcome: call.outcome,
            price_version: call.price_version,
            item: None,
            rate: i128::from(call.charge.nanos()) * PICOS_PER_NANO,
        };
        if call.lines.is_empty() {
            self.put(key, 1, call.charge);
            return;
        }
        for line in call.lines {
            let key = Key {
                item: Some(line.item),
                rate: i128::from(line.rate.0),
                ..key.clone()
            };
            self.put(key, i128::from(line.quantity), line.amount);
        }
    }

    fn put(&mut self, key: Key, quantity: i128, amount: Money) {
        let sums = self.rows.entry(key).or_default();
        sums.quantity += quantity;
        sums.billed_nanos += i128::from(amount.nanos());
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The sum of BilledCost.
    pub(crate) fn billed(&self) -> Money {
        let nanos: i128 = self.rows.values().map(|sums| sums.billed_nanos).sum();
        Money::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    /// Every row's cells, in the order of [`COLUMNS`].
    pub(crate) fn rows(&self) -> impl Iterator<Item = Vec<Cell>> {
        self.rows.iter().map(|(key, sums)| {
            let row = Row {
                period: &self.period,
                key,
                sums: *sums,
            };
            COLUMNS.iter().map(|column| (column.of)(&row)).collect()
        })
    }
}

fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into())
}

fn maybe(text: Option<&String>) -> Cell {
    text.map_or(Cell::Null, |text| Cell::Text(text.clone()))
}

impl Row<'_> {
    fn item(&self) -> &str {
        self.key.item.as_deref().unwrap_or("request")
    }

    fn unit(&self) -> &'static str {
        match self.item() {
            "request" => "Requests",
            "web_search" => "Searches",
            "input_image" | "output_image" => "Images",
            "input_ms" | "output_ms" => "Milliseconds",
            "input_character" | "output_character" => "Characters",
            _ => "Tokens",
        }
    }

    fn sku(&self) -> String {
        format!("{}/{}/{}", self.key.provider, self.key.model, self.item())
    }

    fn billed(&self) -> Cell {
        Cell::Decimal(self.sums.billed_nanos * PICOS_PER_NANO)
    }

    fn list(&self) -> Cell {
        Cell::Decimal(self.key.rate * self.sums.quantity)
    }

    fn organisation(&self) -> Cell {
        text(self.key.account[0].as_deref().unwrap_or("-"))
    }

    /// The account below the organisation, as the gateway shows it.
    fn sub_account(&self) -> Cell {
        let parts: Vec<&str> = self.key.account[1..]
            .iter()
            .map(|part| part.as_deref().unwrap_or("-"))
            .collect();
        let shown = parts.join("/");
        match shown.trim_end_matches("/-") {
            "-" => Cell::Null,
            account => text(account),
        }
    }

    fn sub_account_type(&self) -> Cell {
        let deepest = self.key.account[1..].iter().rposition(Option::is_some);
        deepest.map_or(Cell::Null, |at| text(["Team", "Workflow", "Key"][at]))
    }

    fn tags(&self) -> Cell {
        let names = ["team", "workflow", "key"]
            .into_iter()
            .zip(&self.key.account[1..]);
        let tags = names.filter_map(|(name, part)| Some((name.to_owned(), part.clone()?.into())));
        let mut tags: serde_json::Map<String, serde_json::Value> = tags.collect();
        tags.insert("value".into(), self.key.value.clone().into());
        text(serde_json::Value::Object(tags).to_string())
    }

    fn description(&self) -> Cell {
        let key = self.key;
        let what = match &key.item {
            Some(item) => item.replace('_', " "),
            None => "request, charged as a whole".into(),
        };
        text(format!(
            "{} at {}: {what}, {} tier",
            key.model, key.provider, key.tier
        ))
    }

    fn price_details(&self) -> Cell {
        let key = self.key;
        let details = serde_json::json!({ "x_ServiceTier": key.tier, "x_PriceVersion": key.price_version });
        text(details.to_string())
    }
}

macro_rules! column {
    ($name:literal, $kind:ident, $of:expr) => {
        Column {
            name: $name,
            kind: Kind::$kind,
            nullable: false,
            of: $of,
        }
    };
    ($name:literal, $kind:ident ?, $of:expr) => {
        Column {
            name: $name,
            kind: Kind::$kind,
            nullable: true,
            of: $of,
        }
    };
}

/// FOCUS 1.2 in its own order, then the columns of our own.
#[rustfmt::skip]
pub(crate) const COLUMNS: &[Column] = &[
    column!("BilledCost", Decimal, |row| row.billed()),
    column!("BillingAccountId", Text, |row| row.organisation()),
    column!("BillingAccountName", Text ?, |row| row.organisation()),
    column!("BillingAccountType", Text, |_| text("Organization")),
    column!("BillingCurrency", Text, |_| text("USD")),
    column!("BillingPeriodEnd", Moment, |row| Cell::Moment(row.period.end)),
    column!("BillingPeriodStart", Moment, |row| Cell::Moment(row.period.start)),
    column!("ChargeCategory", Text, |_| text("Usage")),
    column!("ChargeClass", Text ?, |_| Cell::Null),
    column!("ChargeDescription", Text ?, |row| row.description()),
    column!("ChargeFrequency", Text, |_| text("Usage-Based")),
    column!("ChargePeriodEnd", Moment, |row| Cell::Moment(row.key.day_us + DAY_US)),
    column!("ChargePeriodStart", Moment, |row| Cell::Moment(row.key.day_us)),
    column!("ConsumedQuantity", Decimal ?, |row| Cell::Decimal(row.sums.quantity * ONE)),
    column!("ConsumedUnit", Text ?, |row| text(row.unit())),
    column!("ContractedCost", Decimal, |row| row.list()),
    column!("EffectiveCost", Decimal, |row| row.billed()),
    column!("InvoiceIssuerName", Text, |row| text(row.key.provider.as_str())),
    column!("ListCost", Decimal, |row| row.list()),
    column!("ListUnitPrice", Decimal ?, |row| Cell::Decimal(row.key.rate)),
    column!("PricingCategory", Text ?, |_| text("Standard")),
    column!("PricingQuantity", Decimal ?, |row| Cell::Decimal(row.sums.quantity * ONE)),
    column!("PricingUnit", Text ?, |row| text(row.unit())),
    column!("ProviderName", Text, |row| text(row.key.provider.as_str())),
    column!("PublisherName", Text, |row| text(row.key.provider.as_str())),
    column!("ResourceId", Text ?, |row| text(row.key.deployment.as_str())),
    column!("ResourceName", Text ?, |row| text(row.key.deployment.as_str())),
    column!("ResourceType", Text ?, |_| text("Model Deployment")),
    column!("ServiceCategory", Text, |_| text("AI and Machine Learning")),
    column!("ServiceName", Text, |row| text(format!("{} inference", row.key.provider))),
    column!("ServiceSubcategory", Text, |_| text("Generative AI")),
    column!("SkuId", Text ?, |row| text(row.sku())),
    column!("SkuMeter", Text ?, |row| text(row.item())),
    column!("SkuPriceDetails", Text ?, |row| row.price_details()),
    column!("SkuPriceId", Text ?, |row| text(format!("{}/{}/{}", row.sku(), row.key.tier, row.key.rate))),
    column!("SubAccountId", Text ?, |row| row.sub_account()),
    column!("SubAccountName", Text ?, |row| row.sub_account()),
    column!("SubAccountType", Text ?, |row| row.sub_account_type()),
    column!("Tags", Text ?, |row| row.tags()),
    column!("x_BackendClass", Text, |row| text(row.key.class.as_str())),
    column!("x_Item", Text ?, |row| maybe(row.key.item.as_ref())),
    column!("x_Key", Text ?, |row| maybe(row.key.account[3].as_ref())),
    column!("x_Model", Text, |row| text(row.key.model.as_str())),
    column!("x_Origin", Text, |row| text(row.key.origin.as_str())),
    column!("x_Outcome", Text, |row| text(row.key.outcome.as_str())),
    column!("x_PriceVersion", Text, |row| text(row.key.price_version.as_str())),
    column!("x_ServiceTier", Text, |row| text(row.key.tier.as_str())),
    column!("x_Team", Text ?, |row| maybe(row.key.account[1].as_ref())),
    column!("x_ValueTier", Text, |row| text(row.key.value.as_str())),
    column!("x_Workflow", Text ?, |row| maybe(row.key.account[2].as_ref())),
];
