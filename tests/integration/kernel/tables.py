"""The tables of the schema `sample`, as its migration builds them."""

import sqlalchemy as sa

from services.kernel.db.idempotency import idempotency_table
from services.kernel.db.outbox import outbox_table
from services.kernel.kafka.topics import Topic

FACTS = Topic("sample-facts", "google.protobuf.StringValue", partitions=3)
metadata = sa.MetaData(schema="sample")
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("organization_id", sa.Uuid, nullable=False),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
idempotency_keys = idempotency_table(metadata, "sample")
outbox = outbox_table(metadata, "sample")
