-- The table that rules.toml speaks of: an example, as the rules are. PostgreSQL makes it when it makes its database, and
-- never again: on one that is there already, run it by hand.
-- A deleted row tells no more of itself than its key, so what the rule needs of it is in the key.
CREATE TABLE agent_config (
    id text NOT NULL,
    tenant_id text NOT NULL,
    config jsonb NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
