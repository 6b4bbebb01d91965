//! What teams may not do; a layer that would allow more is a mistake.

use super::super::form::TeamLayer;
use super::{Compiler, Team};
use exchange::ThinkingLevel;

impl Compiler<'_, '_, '_> {
    pub(super) fn team(&mut self, name: &str, layer: &TeamLayer) -> Team {
        let path = format!("teams.{name}");
        let count = self.document.deployments.len();
        let mut allowed = vec![layer.allow.is_empty(); count];
        for member in self.steps(&layer.allow, &format!("{path}.allow")).concat() {
            allowed[member] = true;
        }
        for member in self.steps(&layer.never, &format!("{path}.never")).concat() {
            allowed[member] = false;
        }
        for (tier, classes) in &layer.floors {
            if let Some(org) = self.document.floors.get(tier)
                && let Some(wider) = classes.iter().find(|class| !org.contains(class))
            {
                let allowed: Vec<_> = org.iter().map(|class| class.as_str()).collect();
                self.mistakes.hinted(
                    format!("{path}.floors.{tier}"),
                    format!(
                        "allows `{wider}`, which the organisation's floor does not: a team may only narrow"
                    ),
                    format!("the organisation allows {}", allowed.join(", ")),
                );
            }
            self.some_of_class(&format!("{path}.floors.{tier}"), classes);
        }
        let named_models = layer.named_models.unwrap_or(self.document.named_models);
        if named_models < self.document.named_models {
            self.mistakes.hinted(
                format!("{path}.named_models"),
                "is laxer than the organisation's: a team may only narrow",
                "honour < substitute < refuse",
            );
        }
        for (at, region) in layer.regions.iter().enumerate() {
            let mut regions = self
                .document
                .deployments
                .iter()
                .filter_map(|one| one.region.as_deref());
            if !regions.any(|known| known == &**region) {
                let known: Vec<&str> = self
                    .document
                    .deployments
                    .iter()
                    .filter_map(|one| one.region.as_deref())
                    .collect();
                let path = format!("{path}.regions[{at}]");
                self.mistakes
                    .unknown(path, ("region of a deployment", region), known.into_iter());
            }
        }
        Team {
            allowed,
            regions: layer.regions.clone(),
            floors: layer
                .floors
                .iter()
                .map(|(tier, classes)| (*tier, classes.clone()))
                .collect(),
            thinking_at_most: layer.thinking_at_most.unwrap_or(ThinkingLevel::Max),
            named_models,
        }
    }
}
