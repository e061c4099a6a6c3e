"""Checks and indexes for deleted rooms. Search leaves them out: a room without an owner has no word of its own there.

Nothing of it keeps others out, and it can be run again from its beginning. The earlier code's search uses the new index
as it did the old one.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

DOCUMENT = (
    "(to_tsvector('simple', (coalesce(title, '') || ' ') || coalesce(description, ''))"
    " || array_to_tsvector(ARRAY[user_id::text]))"
)
CONSTRAINTS = {
    "fk_chatrooms_former_user_id_users": "FOREIGN KEY (former_user_id) REFERENCES users (id) ON DELETE CASCADE",
    "ck_chatrooms_owner": "CHECK (num_nonnulls(user_id, former_user_id) = 1)",
}
INDEXES = {
    "ix_chatrooms_search_owned": f"chatrooms USING gin ({DOCUMENT}) WHERE user_id IS NOT NULL",
    "ix_chatrooms_former_user_id": "chatrooms (former_user_id) WHERE former_user_id IS NOT NULL",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name in CONSTRAINTS:
            op.execute(f"ALTER TABLE chatrooms VALIDATE CONSTRAINT {name}")
        for name, index in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {index}")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_chatrooms_search")
        # Without statistics PostgreSQL takes most rooms for deleted ones.
        op.execute("ANALYZE chatrooms")


def downgrade() -> None:
    op.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
    for name, constraint in CONSTRAINTS.items():
        op.execute(f"ALTER TABLE chatrooms DROP CONSTRAINT {name}")
        op.execute(f"ALTER TABLE chatrooms ADD CONSTRAINT {name} {constraint} NOT VALID")
    with op.get_context().autocommit_block():
        # Deleted by their owners, and not to be shown again.
        op.execute("DELETE FROM chatrooms WHERE user_id IS NULL")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_chatrooms_search")
        op.execute(f"CREATE INDEX CONCURRENTLY ix_chatrooms_search ON chatrooms USING gin ({DOCUMENT})")
        for name in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
