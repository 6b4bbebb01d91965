-- When a job began to start: one that is killed while starting gives back its money soon, however long its upload took.
ALTER TABLE jobs ADD COLUMN starting_us BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN jobs.starting_us IS 'When the job was made, or its items had all arrived if that was later, by the clock of the database; 0: made before this was kept.';
