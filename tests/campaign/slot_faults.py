"""What campaigns do to a database beneath the worker of a slot."""

from __future__ import annotations

from typing import Final

SLOT: Final = "campaign"
DROP: Final = f"""
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active_pid IS NOT NULL;
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}';
"""
SEARCHES: Final = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = {}', current_database()); END $$;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-%'"""
FAULTS: Final = {
    "a session ends": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-%'",
    "a table is swapped": """
        BEGIN; LOCK TABLE shop.{plain}; CREATE TABLE shop.new (LIKE shop.{plain} INCLUDING ALL);
        INSERT INTO shop.new (id, tenant_id, note) SELECT id, tenant_id, note FROM shop.{plain};
        DROP TABLE shop.{plain}; ALTER TABLE shop.new RENAME TO {plain}; COMMIT""",
    "a table is altered": """
        BEGIN; ALTER TABLE shop.{table} DROP COLUMN IF EXISTS extra;
        ALTER TABLE shop.{table} ADD COLUMN extra text DEFAULT 'x'; COMMIT""",
    "a table's identity is lost": "ALTER TABLE shop.long REPLICA IDENTITY DEFAULT",
    "a table is truncated": "TRUNCATE shop.{table}",
    "a table leaves the publication": "ALTER PUBLICATION campaign DROP TABLE shop.{table}",
    "the publication is dropped": "DROP PUBLICATION campaign",
    "it publishes inserts no more": "ALTER PUBLICATION campaign SET (publish = 'update, delete')",
    "a partition is made anew": """
        BEGIN; DROP TABLE shop.part_1;
        CREATE TABLE shop.part_1 PARTITION OF shop.parts FOR VALUES WITH (MODULUS 2, REMAINDER 1); COMMIT""",
    "a partition leaves and returns": """
        BEGIN; ALTER TABLE shop.parts DETACH PARTITION shop.part_0;
        ALTER TABLE shop.parts ATTACH PARTITION shop.part_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0); COMMIT""",
    "the slot is dropped": DROP,
    "the slot is made anew": f"{DROP} SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')",
    "others read from the slot": f"""
        SELECT count(*) FROM pg_logical_slot_get_binary_changes('{SLOT}', NULL, NULL,
          'proto_version', '1', 'publication_names', 'campaign')""",
    "tables are made elsewhere from now on": SEARCHES.format("shop"),
    "tables are made where they were": SEARCHES.format("public"),
    "others go on reading from the slot": f"""
        DO $$ BEGIN FOR at IN 1..40 LOOP
          PERFORM pg_logical_slot_get_binary_changes('{SLOT}', NULL, NULL,
            'proto_version', '1', 'publication_names', 'campaign');
          PERFORM pg_sleep(0.05);
        END LOOP; END $$""",
    "own tables are copied": """
        DROP SCHEMA IF EXISTS copied CASCADE; CREATE SCHEMA copied;
        CREATE TABLE copied.slots AS TABLE public.cachebus_cdc_slots;
        CREATE TABLE copied.held AS TABLE public.cachebus_cdc_held""",
    "an older state of tables comes back": """
        UPDATE public.cachebus_cdc_slots s SET tables = c.tables FROM copied.slots c WHERE c.slot = s.slot""",
    "an older state of all that is remembered comes back": """
        BEGIN; DELETE FROM public.cachebus_cdc_slots; INSERT INTO public.cachebus_cdc_slots SELECT * FROM copied.slots;
        DELETE FROM public.cachebus_cdc_held;
        INSERT INTO public.cachebus_cdc_held OVERRIDING SYSTEM VALUE SELECT * FROM copied.held; COMMIT""",
    "what is held is dropped": "DROP TABLE public.cachebus_cdc_held",
    "what is remembered of tables can't be read": "UPDATE public.cachebus_cdc_slots SET tables = '[]'",
}
"""What is done to the database by SQL. {plain}: a table without partitions."""
MENDS: Final = {
    "it publishes inserts no more": "ALTER PUBLICATION campaign SET (publish = 'insert, update, delete, truncate')",
    "a table's identity is lost": "ALTER TABLE shop.long REPLICA IDENTITY FULL",
}
"""What mends those of them that no worker may mend."""
