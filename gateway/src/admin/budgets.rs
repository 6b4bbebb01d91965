//! Budgets: as they are defined, and as they stand.

use super::form::{Moment, Nothing, Page, PageQuery, Path, Why, dollars, one_more, rows};
use super::problem::Problem;
use super::route::{Answer, Call};
use exchange::{BackendClass, Money};
use ledger::{
    Balance, Budget, BudgetChange, BudgetSpec, Enforcement, Increase, Period, Scope, StoredBudget, Zone,
};
use meter::Dollars;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Calendar windows, from midnight in the budget's zone.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Per {
    Day,
    Week,
    Month,
    Quarter,
    Total,
}

impl Per {
    const fn period(self) -> Period {
        match self {
            Self::Day => Period::Day,
            Self::Week => Period::Week,
            Self::Month => Period::Month,
            Self::Quarter => Period::Quarter,
            Self::Total => Period::Total,
        }
    }
}

/// `hard`: what does not fit is refused. `soft`: nothing is refused, alerts are raised.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Firmness {
    #[default]
    Hard,
    Soft,
}

/// A budget. Amounts are US dollars as decimal text.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Budget")]
pub(super) struct BudgetView {
    id: String,
    account: Path,
    limit_dollars: String,
    #[schemars(with = "Per")]
    per: &'static str,
    zone: String,
    #[schemars(with = "Firmness")]
    enforcement: Enforcement,
    /// Percent of the limit at which an alert is raised, once per window each.
    alerts_percent: Vec<u16>,
    models: Vec<String>,
    #[schemars(with = "Vec<super::form::Class>")]
    classes: Vec<BackendClass>,
    tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    increase: Option<IncreaseView>,
    /// `config`: declared by a configuration file, and changed there. `api`: made here.
    source: &'static str,
    /// Absent for a moment after it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    standing: Option<Standing>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Increase")]
struct IncreaseView {
    amount_dollars: String,
    until: Moment,
}

/// A budget in its present window, as far as the gateway that answers knows.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Standing {
    /// With an increase that holds now.
    limit_dollars: String,
    /// By all gateways.
    spent_dollars: String,
    /// Held by running requests of this gateway.
    reserved_dollars: String,
    /// Leased to other gateways.
    elsewhere_dollars: String,
    remaining_dollars: String,
    /// Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    resets_at: Option<Moment>,
}

/// A budget to be made. What it is for (account, window, enforcement, scope) cannot be changed later: it is its name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBudget {
    account: Path,
    /// US dollars as text, such as "250.00".
    limit_dollars: Dollars,
    per: Per,
    /// An IANA time zone. Left out: UTC.
    #[serde(default)]
    zone: Option<String>,
    #[serde(default)]
    enforcement: Firmness,
    /// Percent of the limit at which an alert is raised, once per window each.
    #[serde(default)]
    #[schemars(inner(range(min = 1)))]
    alerts_percent: Vec<u16>,
    /// Models that count; a name may end in `*`. Left out: all.
    #[serde(default)]
    models: Vec<String>,
    /// Backend classes that count. Left out: all.
    #[serde(default)]
    #[schemars(with = "Vec<super::form::Class>")]
    classes: Vec<BackendClass>,
    /// Labels that a request must carry to count.
    #[serde(default)]
    tags: BTreeMap<String, String>,
    /// For the audit trail.
    #[serde(default)]
    reason: Option<String>,
}

/// What to change of a budget; what is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    limit_dollars: Option<Dollars>,
    #[schemars(inner(range(min = 1)))]
    alerts_percent: Option<Vec<u16>>,
    /// For the audit trail.
    reason: Option<String>,
}

/// More for a while; it takes the place of an increase before.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct More {
    amount_dollars: Dollars,
    until: Moment,
    /// For the audit trail.
    #[serde(default)]
    reason: Option<String>,
}

fn standing(balance: &Balance) -> Standing {
    Standing {
        limit_dollars: dollars(balance.limit),
        spent_dollars: dollars(balance.spent),
        reserved_dollars: dollars(balance.reserved),
        elsewhere_dollars: dollars(balance.elsewhere),
        remaining_dollars: dollars(balance.remaining()),
        resets_at: (balance.resets_unix_us < i64::MAX).then_some(Moment(balance.resets_unix_us)),
    }
}

fn view(call: &Call, stored: StoredBudget) -> BudgetView {
    let balance = call.ledger().balance(&stored.budget.id);
    let Budget { id, account, spec } = stored.budget;
    let holds = call.now_us < spec.increase.until_us;
    BudgetView {
        id: id.to_string(),
        account: Path(account),
        limit_dollars: dollars(spec.limit),
        per: spec.period.as_str(),
        zone: spec.zone.name().to_owned(),
        enforcement: spec.enforcement,
        alerts_percent: spec.thresholds,
        models: spec.scope.models.iter().map(ToString::to_string).collect(),
        classes: spec.scope.classes,
        tags: spec
            .scope
            .tags
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect(),
        increase: holds.then(|| IncreaseView {
            amount_dollars: dollars(spec.increase.amount),
            until: Moment(spec.increase.until_us),
        }),
        source: stored.source.as_str(),
        standing: balance.as_ref().map(standing),
    }
}

fn money(amount: &Dollars, field: &str) -> Answer<Money> {
    let money = amount.money();
    money.map_err(|problem| Problem::invalid(format!("`{field}`: {problem}")))
}

fn thresholds(percent: Vec<u16>) -> Answer<Vec<u16>> {
    if percent.contains(&0) {
        return Err(Problem::invalid(
            "`alerts_percent` has a 0: an alert at nothing says nothing",
        ));
    }
    Ok(percent)
}

/// A budget that the visitor may see.
async fn found(call: &Call) -> Answer<StoredBudget> {
    let id = call.parameter("id");
    let stored = call.ledger().budget(id).await?;
    let own = call.who.must_own(&stored.budget.account);
    own.map_err(|_| Problem::missing(format!("budget `{id}`")))?;
    Ok(stored)
}

/// A budget that the visitor may change.
async fn changeable(call: &Call) -> Answer<StoredBudget> {
    let stored = found(call).await?;
    call.who.must_be_above(&stored.budget.account)?;
    Ok(stored)
}

pub(super) async fn list(call: Call, query: PageQuery) -> Answer<Page<BudgetView>> {
    let (rows, within) = (rows(query.limit)?, query.within(&call)?);
    let found = call
        .ledger()
        .budgets(&within, query.cursor(), one_more(rows))
        .await?;
    let id = |stored: &StoredBudget| stored.budget.id.to_string();
    Ok(Page::of(found, rows, id, |stored| view(&call, stored)))
}

pub(super) async fn read(call: Call, _: Nothing) -> Answer<BudgetView> {
    let stored = found(&call).await?;
    Ok(view(&call, stored))
}

pub(super) async fn create(call: Call, new: NewBudget) -> Answer<BudgetView> {
    call.who.must_be_above(&new.account.0)?;
    let zone = new.zone.as_deref().map_or(Ok(Zone::default()), Zone::parse);
    let tags = new.tags.iter();
    let spec = BudgetSpec {
        limit: money(&new.limit_dollars, "limit_dollars")?,
        period: new.per.period(),
        zone: zone.map_err(|problem| Problem::invalid(format!("`zone`: {problem}")))?,
        enforcement: match new.enforcement {
            Firmness::Hard => Enforcement::Hard,
            Firmness::Soft => Enforcement::Soft,
        },
        thresholds: thresholds(new.alerts_percent)?,
        scope: Scope {
            models: new.models.iter().map(|model| model.as_str().into()).collect(),
            classes: new.classes,
            tags: tags
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect(),
        },
        increase: Increase::default(),
    };
    let budget = Budget::new(new.account.0, spec);
    let made = call
        .ledger()
        .create_budget(&budget, call.change(&new.reason))
        .await?;
    Ok(view(&call, made))
}

pub(super) async fn change(call: Call, wanted: Wanted) -> Answer<BudgetView> {
    let stored = changeable(&call).await?;
    let limit = wanted.limit_dollars.as_ref();
    let change = BudgetChange {
        limit: limit.map(|limit| money(limit, "limit_dollars")).transpose()?,
        thresholds: wanted.alerts_percent.map(thresholds).transpose()?,
        increase: None,
    };
    let (id, why) = (&stored.budget.id, call.change(&wanted.reason));
    let changed = call.ledger().change_budget(id, change, why).await?;
    Ok(view(&call, changed))
}

pub(super) async fn retire(call: Call, why: Why) -> Answer<()> {
    let stored = changeable(&call).await?;
    let why = call.change(&why.reason);
    Ok(call.ledger().retire_budget(&stored.budget.id, why).await?)
}

pub(super) async fn increase(call: Call, more: More) -> Answer<BudgetView> {
    let stored = changeable(&call).await?;
    if more.until.0 <= call.now_us {
        return Err(Problem::invalid("`until` is in the past"));
    }
    let increase = Increase {
        amount: money(&more.amount_dollars, "amount_dollars")?,
        until_us: more.until.0,
    };
    raise(&call, &stored, increase, &more.reason).await
}

pub(super) async fn end_increase(call: Call, why: Why) -> Answer<()> {
    let stored = changeable(&call).await?;
    raise(&call, &stored, Increase::default(), &why.reason).await?;
    Ok(())
}

async fn raise(
    call: &Call,
    stored: &StoredBudget,
    increase: Increase,
    reason: &Option<String>,
) -> Answer<BudgetView> {
    let change = BudgetChange {
        increase: Some(increase),
        ..BudgetChange::default()
    };
    let why = call.change(reason);
    let changed = call
        .ledger()
        .change_budget(&stored.budget.id, change, why)
        .await?;
    Ok(view(call, changed))
}
