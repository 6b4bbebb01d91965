//! How much thinking one deployment gets: the caller's setting is a request, the policy's bounds are not, and where
//! nobody says, thinking must earn its tokens.

use super::Ruling;
use crate::ability::{Ability, level_of_setting};
use crate::estimates::Estimate;
use exchange::{Thinking, ThinkingLevel, ThinkingNote, Verdict};

/// What is sent, the level that it amounts to, and what became of what was asked.
type Given = (Option<Thinking>, ThinkingLevel, ThinkingNote);

impl Ruling<'_> {
    pub(super) fn thinking(&self, index: usize, estimate: &Estimate) -> Given {
        let grant = self.ask.profile.thinking;
        let (at_least, at_most) = self.bounds();
        let Some(ability) = &self.policy.models[index].ability else {
            let asks = grant.wanted.map(level_of_setting).unwrap_or(at_least) > ThinkingLevel::None;
            let note = if asks {
                ThinkingNote::Unable
            } else {
                ThinkingNote::Untouched
            };
            return (None, ThinkingLevel::None, note);
        };
        if self.ask.facts.thinking.is_none()
            && let Some(kept) = self.kept(index, (at_least, at_most))
        {
            return (Some(kept), level_of_setting(kept), ThinkingNote::Kept);
        }
        match grant.wanted {
            Some(wanted) => self.bounded(ability, wanted, (at_least, at_most)),
            None if grant.by_gain => self.by_gain(index, ability, estimate),
            None => {
                let usual = ability.default_level();
                if usual < at_least {
                    given(ability, Thinking::Level(at_least), ThinkingNote::Raised)
                } else if usual > at_most {
                    given(ability, Thinking::Level(at_most), ThinkingNote::Capped)
                } else {
                    (None, usual, ThinkingNote::Untouched)
                }
            }
        }
    }

    fn bounds(&self) -> (ThinkingLevel, ThinkingLevel) {
        let grant = self.ask.profile.thinking;
        let team = self.team.map_or(ThinkingLevel::Max, |team| team.thinking_at_most);
        let at_most = grant.at_most.unwrap_or(ThinkingLevel::Max).min(team);
        (
            grant.at_least.unwrap_or(ThinkingLevel::None).min(at_most),
            at_most,
        )
    }

    /// What the conversation's last turn had here: a change would void the cache.
    fn kept(&self, index: usize, (at_least, at_most): (ThinkingLevel, ThinkingLevel)) -> Option<Thinking> {
        let last = self.ask.conversation?.thinking?;
        let fits = (at_least..=at_most).contains(&level_of_setting(last));
        (self.home == Some(index) && fits).then_some(last)
    }

    fn bounded(
        &self,
        ability: &Ability,
        wanted: Thinking,
        (at_least, at_most): (ThinkingLevel, ThinkingLevel),
    ) -> Given {
        let level = level_of_setting(wanted);
        if level > at_most {
            given(ability, Thinking::Level(at_most), ThinkingNote::Capped)
        } else if level < at_least {
            given(ability, Thinking::Level(at_least), ThinkingNote::Raised)
        } else if self.ask.facts.thinking == Some(wanted) {
            given(ability, wanted, ThinkingNote::Honoured)
        } else {
            given(ability, wanted, ThinkingNote::Granted)
        }
    }

    /// The level of the best expected outcome, the lower of two that are equal; service levels come first.
    fn by_gain(&self, index: usize, ability: &Ability, estimate: &Estimate) -> Given {
        let (at_least, at_most) = self.bounds();
        let mut best = None;
        for level in ability.between(at_least, at_most) {
            let score = self.terms(index, estimate, (Some(Thinking::Level(level)), level));
            let meets = self.service_level(&score) == Verdict::Chosen;
            let rank = (meets, score.utility);
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, level));
            }
        }
        match best {
            Some((_, level)) => (Some(Thinking::Level(level)), level, ThinkingNote::ByGain),
            None => given(ability, Thinking::Level(at_least), ThinkingNote::Raised),
        }
    }
}

fn given(ability: &Ability, wanted: Thinking, note: ThinkingNote) -> Given {
    let nearest = ability.nearest(wanted);
    let note = if nearest == wanted {
        note
    } else {
        ThinkingNote::Mapped
    };
    (Some(nearest), level_of_setting(nearest), note)
}
