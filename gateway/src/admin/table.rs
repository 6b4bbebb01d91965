//! Every operation of the admin API: one line each. The OpenAPI document is made from this table, so that it cannot lie.

use super::route::Route;
use super::visitor::May::{Administer, Change, Read};
use super::{accounts, alerts, audit, budgets, jobs, keys, openapi, policies, requests, usage};

#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/admin/v1/openapi.json", "This document", Read, openapi::read),
        Route::get("/admin/v1/keys", "List keys, the latest first", Read, keys::list),
        Route::create("/admin/v1/keys", "Make a key; its secret is shown once", Change, keys::create),
        Route::get("/admin/v1/keys/{id}", "Read a key", Read, keys::read),
        Route::patch("/admin/v1/keys/{id}", "Change what a key may do", Change, keys::change),
        Route::delete("/admin/v1/keys/{id}", "Revoke a key for good", Change, keys::revoke),
        Route::post("/admin/v1/keys/{id}/rotate", "Give a key another secret; the old one works for a while", Change, keys::rotate),
        Route::get("/admin/v1/accounts", "List organisations, teams and workflows", Read, accounts::list),
        Route::create("/admin/v1/accounts", "Make an organisation, a team or a workflow", Change, accounts::create),
        Route::get("/admin/v1/accounts/{account}", "Read an account", Read, accounts::read),
        Route::patch("/admin/v1/accounts/{account}", "Rename an account, or switch it off or on", Change, accounts::change),
        Route::get("/admin/v1/budgets", "List budgets as they stand", Read, budgets::list),
        Route::create("/admin/v1/budgets", "Make a budget", Change, budgets::create),
        Route::get("/admin/v1/budgets/{id}", "Read a budget as it stands", Read, budgets::read),
        Route::patch("/admin/v1/budgets/{id}", "Change a budget's limit or its alerts", Change, budgets::change),
        Route::delete("/admin/v1/budgets/{id}", "Retire a budget", Change, budgets::retire),
        Route::post("/admin/v1/budgets/{id}/increase", "Give a budget more for a while", Change, budgets::increase),
        Route::delete("/admin/v1/budgets/{id}/increase", "End an increase", Change, budgets::end_increase),
        Route::get("/admin/v1/requests", "List requests, the latest first", Read, requests::list),
        Route::get("/admin/v1/requests/{id}", "Read a request and its attempts", Read, requests::read),
        Route::get("/admin/v1/usage", "Sum spend and tokens", Read, usage::read),
        Route::get("/admin/v1/alerts", "List alerts, the latest first", Read, alerts::list),
        Route::get("/admin/v1/audit", "List changes, the latest first", Read, audit::list),
        Route::get("/admin/v1/audit/batch", "What ran at once and could have waited, with the money left on the table", Read, jobs::audit),
        Route::get("/admin/v1/jobs", "List jobs, the latest first", Read, jobs::list),
        Route::get("/admin/v1/jobs/{id}", "Read a job", Read, jobs::read),
        Route::post("/admin/v1/jobs/{id}/cancel", "Cancel what of a job is not answered", Change, jobs::cancel),
        Route::post("/admin/v1/jobs/{id}/rescue", "Answer at once what of a job waits for a batch", Change, jobs::rescue),
        Route::get("/admin/v1/policies", "Read the policy in force", Read, policies::read),
        Route::post("/admin/v1/policies", "Put another policy in force, if it is sound", Administer, policies::put),
    ]
}
