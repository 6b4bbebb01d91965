//! What a job's money needs of the books: a look at cells from which a slice has passed to a job, or come back.

use super::lease::Sizing;
use super::{Books, Transfer};
use crate::budget::Enforcement;
use crate::settlement::CellName;

impl Books {
    /// The store is to be asked again how these cells stand. What the job wanted says nothing of the requests to come.
    pub(crate) fn look_again(&mut self, cells: &[CellName]) {
        for name in cells {
            let Some(position) = self.by_id.get(&name.budget) else {
                continue;
            };
            if let Some(cell) = self.budgets[*position].cell(name.window.starts_us) {
                cell.sizing = Sizing::default();
                cell.sizing.stale = true;
                self.wanting = true;
            }
        }
    }

    /// The store is to be asked again how every present cell stands.
    pub(crate) fn look_at_all(&mut self) {
        for state in &mut self.budgets {
            state.cells.iter_mut().for_each(|cell| cell.sizing.stale = true);
        }
        self.wanting = true;
    }

    /// The cells of a transfer, and which of them are of hard budgets, of which alone slices are leased.
    pub(crate) fn cells_of(&self, transfer: &Transfer) -> Vec<(CellName, bool)> {
        let hard = |name: &CellName| {
            let position = self.by_id.get(&name.budget);
            position
                .is_some_and(|position| self.budgets[*position].budget.spec.enforcement == Enforcement::Hard)
        };
        let names = self.names(transfer).into_iter();
        names
            .map(|name| {
                let hard = hard(&name);
                (name, hard)
            })
            .collect()
    }
}
