-- Rate limits of keys and accounts that are made while the gateway runs.
ALTER TABLE accounts ADD COLUMN requests_per_minute BIGINT NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN tokens_per_minute BIGINT NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN concurrency BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN accounts.requests_per_minute IS 'Of all requests under it together; 0: any number. A limit in a configuration file goes before it.';
COMMENT ON COLUMN accounts.tokens_per_minute IS 'Read and generated; 0: any number.';
COMMENT ON COLUMN accounts.concurrency IS 'Requests running at once; 0: any number.';

ALTER TABLE keys ADD COLUMN requests_per_minute BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN tokens_per_minute BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN concurrency BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN keys.requests_per_minute IS 'As in accounts.';
