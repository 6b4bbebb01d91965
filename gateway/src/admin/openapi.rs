//! The OpenAPI document, assembled from the table of routes and the types of what goes in and out.

use super::form::Nothing;
use super::problem::Problem;
use super::route::{Answer, Call, Route};
use super::table::routes;
use super::visitor::May;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

pub(super) async fn read(_: Call, _: Nothing) -> Answer<Value> {
    Ok(document(&routes()))
}

/// The whole document.
pub(super) fn document(routes: &[Route]) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = SchemaGenerator::new(settings);
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation;
    }
    let problem = generator.subschema_for::<Problem>();
    let mut schemas = generator.take_definitions(true);
    schemas.insert(
        "Problem".into(),
        schemas.get("Problem").cloned().unwrap_or(problem.to_value()),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tollgate administration",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Keys, accounts, budgets and what was spent. Lists go by pages: `next_cursor` of one is `cursor` of the next. A POST that carries `Idempotency-Key` is answered once; the same request again within a day gets the same answer.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
        },
        "security": [{ "key": [] }],
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    for name in route.path.split('/').filter_map(|part| part.strip_prefix('{')) {
        let name = name.trim_end_matches('}');
        parameters
            .push(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    }
    let input = (route.input)(generator).to_value();
    let mut operation = json!({ "operationId": operation_id(route), "summary": route.summary });
    if let Some(may) = told(route.may) {
        operation["description"] = may.into();
    }
    if route.has_body() {
        operation["requestBody"] = json!({ "content": { (route.media): { "schema": input } } });
        if route.method == http::Method::POST {
            parameters.push(json!({
                "name": "Idempotency-Key", "in": "header", "schema": { "type": "string", "minLength": 1, "maxLength": 200 },
            }));
        }
    } else {
        parameters.extend(query(&input, generator));
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    let output = (route.output)(generator).to_value();
    let good = if route.status == 204 {
        json!({ "description": "Done." })
    } else {
        json!({ "description": "Done.", "content": { "application/json": { "schema": output } } })
    };
    let problem = json!({
        "description": "What is wrong, and what to do.",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    operation["responses"] = json!({ (route.status.to_string()): good, "4XX": problem, "5XX": problem });
    operation
}

fn told(may: May) -> Option<&'static str> {
    match may {
        May::Read => None,
        May::Change => Some("For `admin`, and for `team_owner` below its own account."),
        May::Administer => Some("For `admin`."),
    }
}

/// `post /admin/v1/keys/{id}/rotate` is `postKeysIdRotate`.
fn operation_id(route: &Route) -> String {
    let parts = route.path.split(['/', '.']).skip(3);
    let mut id = route.method.as_str().to_lowercase();
    for part in parts {
        let word = part.trim_matches(['{', '}']);
        let mut letters = word.chars();
        if let Some(first) = letters.next() {
            id.extend(first.to_uppercase());
            id.push_str(letters.as_str());
        }
    }
    id
}

/// The properties of a form are what the query may have.
fn query(form: &Value, generator: &mut SchemaGenerator) -> Vec<Value> {
    let named = form["$ref"].as_str().and_then(|path| path.rsplit('/').next());
    let form = match named.and_then(|name| generator.definitions().get(name)) {
        Some(found) => found.clone(),
        None => form.clone(),
    };
    let required: Vec<&str> = form["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = form["properties"].as_object().cloned().unwrap_or_default();
    let parameter = |(name, schema): (String, Value)| json!({ "name": name, "in": "query", "required": required.contains(&name.as_str()), "schema": present(schema) });
    properties.into_iter().map(parameter).collect()
}

/// What is left out of a query is not there; it is never null.
fn present(mut schema: Value) -> Value {
    if let Some(kinds) = schema["type"].as_array_mut() {
        kinds.retain(|kind| kind != "null");
        if let [only] = &kinds[..] {
            schema["type"] = only.clone();
        }
    }
    if let Some(choices) = schema["anyOf"].as_array_mut() {
        choices.retain(|choice| choice["type"] != "null");
        if let [only] = &choices[..] {
            let only = only.clone();
            let description = schema["description"].clone();
            schema = only;
            if let (Some(shape), false) = (schema.as_object_mut(), description.is_null()) {
                shape.insert("description".into(), description);
            }
        }
    }
    if let Some(shape) = schema.as_object_mut() {
        shape.retain(|_, value| !value.is_null());
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_document_has_every_route_and_nothing_else() {
        let routes = routes();
        let document = document(&routes);
        let mut told: HashSet<(String, String)> = HashSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                told.insert((method.to_uppercase(), path.clone()));
                let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
                let in_path = parameters.iter().filter(|one| one["in"] == "path").count();
                assert_eq!(in_path, path.matches('{').count(), "{path}");
            }
        }
        let ours: HashSet<_> = routes
            .iter()
            .map(|route| (route.method.to_string(), route.path.to_owned()))
            .collect();
        assert_eq!(ours.len(), routes.len(), "a route is there twice");
        assert_eq!(told, ours);
    }

    #[test]
    fn every_reference_of_the_document_is_in_it_and_ids_are_unique() {
        let document = document(&routes());
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(!document["components"]["schemas"][name].is_null(), "{name}");
        }
        let ids: Vec<&str> = text
            .split("\"operationId\":\"")
            .skip(1)
            .map(|id| id.split('"').next().unwrap())
            .collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert!(ids.contains(&"postKeysIdRotate"));
        let limit = &document["paths"]["/admin/v1/keys"]["get"]["parameters"][2];
        assert_eq!(
            (limit["name"].as_str(), limit["schema"]["maximum"].as_i64()),
            (Some("limit"), Some(500))
        );
    }
}
