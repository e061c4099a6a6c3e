"""Streams, stops, idempotency keys, search.

Only adds: the earlier code goes on working on this schema. Messages that it writes meanwhile have no `user_id`, so
search does not find them. It writes every message anew and indexes them, in one transaction that keeps others from
the table: a minute or more for a million messages. Before the first release nobody has so many.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

RISKS = {
    "UPDATE messages SET user_id": "never released: there were no rows to keep others from",
    "CREATE UNIQUE INDEX uq_messages_reply_to_unfinished": "never released: there were no rows to index",
    "CREATE INDEX ix_messages_search": "never released: there were no rows to index",
    "CREATE INDEX ix_chatrooms_search": "never released: there were no rows to index",
    "CREATE INDEX ix_reply_jobs_user_id": "a small table: what is under way",
}


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("reply_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_idempotency_keys_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)
    op.add_column("reply_jobs", sa.Column("stop_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("reply_jobs", sa.Column("last_error", sa.Text(), nullable=True))
    op.create_index("ix_reply_jobs_user_id", "reply_jobs", ["user_id"], unique=False)
    op.add_column("messages", sa.Column("text_token", sa.BigInteger(), nullable=True))
    op.add_column("messages", sa.Column("user_id", sa.Uuid(), nullable=True))
    op.execute("UPDATE messages SET user_id = room.user_id FROM chatrooms AS room WHERE room.id = room_id")
    op.create_index(
        "uq_messages_reply_to_unfinished",
        "messages",
        ["reply_to"],
        unique=True,
        postgresql_where=sa.text("status IN ('pending', 'processing')"),
    )
    # The owner is a word of each indexed text; see the models.
    op.execute(
        "CREATE INDEX ix_messages_search ON messages USING gin ("
        "(to_tsvector('simple', content) || array_to_tsvector(ARRAY[coalesce(user_id::text, '-')])))"
    )
    op.execute(
        "CREATE INDEX ix_chatrooms_search ON chatrooms USING gin ("
        "(to_tsvector('simple', (coalesce(title, '') || ' ') || coalesce(description, ''))"
        " || array_to_tsvector(ARRAY[user_id::text])))"
    )


def downgrade() -> None:
    op.drop_index("ix_chatrooms_search", table_name="chatrooms")
    op.drop_index("ix_messages_search", table_name="messages")
    op.drop_index("uq_messages_reply_to_unfinished", table_name="messages")
    op.drop_column("messages", "user_id")
    op.drop_column("messages", "text_token")
    op.drop_index("ix_reply_jobs_user_id", table_name="reply_jobs")
    op.drop_column("reply_jobs", "last_error")
    op.drop_column("reply_jobs", "stop_requested_at")
    op.drop_index("ix_idempotency_keys_created_at", table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
