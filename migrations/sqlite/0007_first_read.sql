-- As ../0007_first_read.sql.
ALTER TABLE jobs ADD COLUMN read_us INTEGER NOT NULL DEFAULT 0;
