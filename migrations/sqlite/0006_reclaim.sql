-- As ../0006_reclaim.sql; one process alone never asks in vain.
ALTER TABLE budget_windows ADD COLUMN needed_us INTEGER NOT NULL DEFAULT 0;
