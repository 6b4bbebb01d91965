-- Rate limits of keys and accounts that are made while the gateway runs; 0: any number.
ALTER TABLE accounts ADD COLUMN requests_per_minute INTEGER NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN tokens_per_minute INTEGER NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN concurrency INTEGER NOT NULL DEFAULT 0;

ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN tokens_per_minute INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN concurrency INTEGER NOT NULL DEFAULT 0;
