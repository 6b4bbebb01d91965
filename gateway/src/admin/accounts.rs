//! Organisations, teams and workflows.

use super::form::{Moment, Nothing, Page, PageQuery, Path, one_more, rows};
use super::problem::Problem;
use super::rates::{NewRateLimits, RateLimits};
use super::route::{Answer, Call};
use exchange::AccountPath;
use ledger::{Account, AccountChange};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An account of the tree.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Account")]
pub(super) struct AccountView {
    account: Path,
    /// `org`, `team` or `workflow`.
    level: &'static str,
    /// For people.
    title: String,
    /// No key under it is accepted.
    disabled: bool,
    /// Of all requests under it together, as they are in force at the gateway that answers.
    rate_limits: RateLimits,
    /// `config`: declared by a configuration file. `api`: made here.
    source: &'static str,
    created_at: Moment,
}

/// An account to be made. The one above it must be there.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAccount {
    account: Path,
    /// For people.
    #[serde(default)]
    title: String,
    /// Of all requests under it together.
    #[serde(default)]
    rate_limits: RateLimits,
    /// For the audit trail.
    #[serde(default)]
    reason: Option<String>,
}

/// What to change of an account; what is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    title: Option<String>,
    /// True: no key under it is accepted.
    disabled: Option<bool>,
    rate_limits: NewRateLimits,
    /// For the audit trail.
    reason: Option<String>,
}

fn view(call: &Call, account: Account) -> AccountView {
    let level = match (&account.path.team, &account.path.workflow) {
        (_, Some(_)) => "workflow",
        (Some(_), None) => "team",
        (None, None) => "org",
    };
    AccountView {
        level,
        title: account.title,
        disabled: account.disabled,
        rate_limits: RateLimits::of(call, &account.path, account.rates),
        source: account.source.as_str(),
        created_at: Moment(account.created_us),
        account: Path(account.path),
    }
}

/// The account that the path of the request names.
fn named(call: &Call) -> Answer<AccountPath> {
    let text = call.parameter("account");
    let path: AccountPath = text
        .parse()
        .map_err(|_| Problem::missing(format!("account {text}")))?;
    call.who.must_own(&path)?;
    Ok(path)
}

pub(super) async fn list(call: Call, query: PageQuery) -> Answer<Page<AccountView>> {
    let (rows, within) = (rows(query.limit)?, query.within(&call)?);
    let after = query.after(|cursor| cursor.parse::<AccountPath>().ok())?;
    let found = call
        .ledger()
        .accounts(&within, after.as_ref(), one_more(rows))
        .await?;
    let cursor = |account: &Account| account.path.to_string();
    Ok(Page::of(found, rows, cursor, |account| view(&call, account)))
}

pub(super) async fn read(call: Call, _: Nothing) -> Answer<AccountView> {
    let path = named(&call)?;
    let found = call.ledger().account(&path).await?;
    Ok(view(&call, found))
}

pub(super) async fn create(call: Call, new: NewAccount) -> Answer<AccountView> {
    let path = &new.account.0;
    if path.key.is_some() {
        return Err(Problem::invalid(format!("{path} names a key")).hint("make it with POST /admin/v1/keys"));
    }
    call.who.must_be_above(path)?;
    let made = call
        .ledger()
        .create_account(
            (path, &new.title, new.rate_limits.rates()?),
            call.change(&new.reason),
        )
        .await?;
    call.gateway.limits.adopt(&call.ledger().rates());
    Ok(view(&call, made))
}

pub(super) async fn change(call: Call, wanted: Wanted) -> Answer<AccountView> {
    let path = named(&call)?;
    call.who.must_be_above(&path)?;
    let change = AccountChange {
        title: wanted.title,
        disabled: wanted.disabled,
        rates: wanted.rate_limits.change(&call, &path)?,
    };
    let changed = call
        .ledger()
        .change_account(&path, change, call.change(&wanted.reason))
        .await?;
    call.gateway.limits.adopt(&call.ledger().rates());
    Ok(view(&call, changed))
}
