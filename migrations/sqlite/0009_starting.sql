-- As ../0009_starting.sql.
ALTER TABLE jobs ADD COLUMN starting_us INTEGER NOT NULL DEFAULT 0;
