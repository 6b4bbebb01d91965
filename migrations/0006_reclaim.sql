-- A node that is short of a budget window says so here; those who hold slices of it give back what they do not need.
ALTER TABLE budget_windows ADD COLUMN needed_us BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN budget_windows.needed_us IS 'When a node last asked in vain while others held the rest, by the clock of the database.';
CREATE INDEX budget_windows_needed ON budget_windows (needed_us) WHERE needed_us > 0;
