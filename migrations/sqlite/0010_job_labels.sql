-- What a job was declared to be, and what the decision on an item depended on. See ../0010_job_labels.sql.
ALTER TABLE jobs ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';
ALTER TABLE job_items ADD COLUMN decision TEXT;
