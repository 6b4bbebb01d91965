-- When the answer of a job was first read: an answer that lies for hours could have waited for a batch.
ALTER TABLE jobs ADD COLUMN read_us BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN jobs.read_us IS 'When an answer was first read after the job had ended, by the clock of the database; 0: not yet.';

CREATE VIEW finance.job_reads_daily AS
SELECT date_trunc('day', finance.moment(j.ended_us), 'UTC') AS day, nullif(j.org, '') AS org, nullif(j.team, '') AS team,
    nullif(j.workflow, '') AS workflow, count(*) AS jobs, count(*) FILTER (WHERE j.read_us = 0) AS unread,
    avg((j.read_us - j.ended_us) / 1000000.0) FILTER (WHERE j.read_us > 0) AS seconds_to_first_read,
    avg((j.ended_us - j.created_us) / 1000000.0) AS seconds_to_answer
FROM jobs j
WHERE j.kind <> 'file' AND j.ended_us > 0
GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW finance.job_reads_daily IS 'How long after their end the answers of jobs were first read, by UTC day of the end.';
