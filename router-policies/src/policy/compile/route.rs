//! Routes with their names resolved to positions.

use super::super::form::Route;
use super::super::scalars::Step;
use super::{CompiledRoute, Compiler};
use std::collections::HashSet;

impl Compiler<'_, '_, '_> {
    pub(super) fn route(&mut self, index: usize) -> CompiledRoute {
        let document = self.document;
        let route: &Route = &document.routes[index];
        let path = format!("routes[{index}]");
        let test = self.test(&route.when, &format!("{path}.when"));
        let mut taken = HashSet::new();
        let mut prefer = Vec::new();
        for (step, members) in self
            .steps(&route.prefer, &format!("{path}.prefer"))
            .into_iter()
            .enumerate()
        {
            let fresh: Vec<usize> = members
                .iter()
                .copied()
                .filter(|member| taken.insert(*member))
                .collect();
            if fresh.is_empty() && !members.is_empty() {
                let path = format!("{path}.prefer[{step}]");
                self.mistakes
                    .hinted(path, "is in the list already", "take it out");
            }
            prefer.push(fresh);
        }
        let mut allow: Vec<usize> = self.steps(&route.allow, &format!("{path}.allow")).concat();
        if let Some(pin) = &route.pin {
            let pinned = self.steps(&[Step::Deployment(pin.clone())], &format!("{path}.pin"));
            if !route.prefer.is_empty() || !route.allow.is_empty() {
                self.mistakes.hinted(
                    format!("{path}.pin"),
                    "stands beside `prefer` or `allow`, which it leaves nothing to say",
                    "keep one of them; what may stand in for the pinned one goes under `fallback`",
                );
            }
            taken.extend(pinned.iter().flatten());
            prefer = pinned;
        } else if route.prefer.is_empty() && route.allow.is_empty() {
            allow = (0..document.deployments.len()).collect();
        }
        allow.retain(|member| taken.insert(*member));
        let mut never = vec![false; document.deployments.len()];
        for member in self.steps(&route.never, &format!("{path}.never")).concat() {
            never[member] = true;
        }
        let fallback = self.steps(&route.fallback, &format!("{path}.fallback"));
        let fallback = fallback
            .into_iter()
            .map(|step| step.into_iter().filter(|member| taken.insert(*member)).collect());
        CompiledRoute {
            name: route.name.clone(),
            test,
            names_a_model: route.when.names_a_model(),
            prefer,
            allow,
            fallback: fallback.collect(),
            never,
            is_pin: route.pin.is_some(),
            split: self.split(route, &path),
        }
    }

    fn split(&mut self, route: &Route, path: &str) -> Vec<(usize, f64)> {
        let mut total = 0.0;
        let mut split = Vec::new();
        for (position, part) in route.split.iter().enumerate() {
            let path = format!("{path}.split[{position}]");
            if !(0.0..=100.0).contains(&part.percent) {
                let problem = format!("{} is outside 0 … 100", part.percent);
                self.mistakes.hinted(
                    format!("{path}.percent"),
                    problem,
                    "of a hundred requests, so many",
                );
            }
            total += part.percent;
            let members = self
                .steps(&[Step::Deployment(part.to.clone())], &format!("{path}.to"))
                .concat();
            split.extend(members.first().map(|member| (*member, part.percent)));
        }
        if total > 100.0 {
            let problem = format!("the shares come to {total} per cent");
            self.mistakes.hinted(
                format!("{path}.split"),
                problem,
                "lower them: what is left over is routed as usual",
            );
        }
        split
    }

    /// The members of each step, in the document's order of deployments.
    pub(super) fn steps(&mut self, steps: &[Step], path: &str) -> Vec<Vec<usize>> {
        let document = self.document;
        let is_list = !path.ends_with(".pin") && !path.ends_with(".to");
        let mut found = Vec::new();
        for (position, step) in steps.iter().enumerate() {
            let path = if is_list {
                format!("{path}[{position}]")
            } else {
                path.to_owned()
            };
            let deployments = document.deployments.iter().enumerate();
            let members: Vec<usize> = deployments
                .filter(|(_, one)| match step {
                    Step::Deployment(id) => one.id == *id,
                    Step::Class(class) => one.class == *class,
                })
                .map(|(index, _)| index)
                .collect();
            if members.is_empty() {
                match step {
                    Step::Deployment(id) => {
                        let known: Vec<&str> = document.deployments.iter().map(|one| &*one.id).collect();
                        self.mistakes.unknown(path, ("deployment", id), known.into_iter());
                    }
                    Step::Class(class) => self.some_of_class(&path, &[*class]),
                }
            }
            found.push(members);
        }
        found
    }
}
