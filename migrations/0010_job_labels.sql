-- What a job was declared to be: the tags of its request's head, and the texts of its metadata. And what the decision on an
-- item of a batch depended on, until the item's request has a row of its own.
ALTER TABLE jobs ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';
ALTER TABLE job_items ADD COLUMN decision TEXT;
COMMENT ON COLUMN jobs.labels IS 'JSON: pairs of a declared label''s name and its value, as conditions and budgets see them.';
COMMENT ON COLUMN job_items.decision IS 'What the decision on it depended on, where decisions are kept; goes to `decisions` with the request that pays for it.';

-- What jobs came to by their declared labels. A job with two labels counts for each of them.
CREATE VIEW finance.job_labels_daily AS
SELECT date_trunc('day', finance.moment(i.ended_us), 'UTC') AS day, nullif(j.org, '') AS org, nullif(j.team, '') AS team,
    nullif(j.workflow, '') AS workflow, label.pair ->> 0 AS label, label.pair ->> 1 AS value, count(*) AS items,
    finance.dollars(sum(i.charge)) AS cost, finance.dollars(sum(i.saved)) AS saved
FROM jobs j JOIN job_items i ON i.job = j.id CROSS JOIN LATERAL jsonb_array_elements(j.labels::jsonb) AS label (pair)
WHERE i.ended_us > 0
GROUP BY 1, 2, 3, 4, 5, 6;
COMMENT ON VIEW finance.job_labels_daily IS 'Items of jobs that had ended, and their money, by UTC day of their end and by each label that their job was declared with.';
