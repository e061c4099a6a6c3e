"""Deleted rooms of many messages: nobody's from then on, for the sweeper to clear.

The earlier code goes on working on this schema: it asks for rooms by their owner, and finds none of these. The foreign
key comes with 0008, indexes with 0009, before any code makes such a room.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

RISKS = {"ALTER TABLE chatrooms ALTER COLUMN user_id DROP NOT NULL": "all code names an owner, and asks by owner"}


def upgrade() -> None:
    op.add_column("chatrooms", sa.Column("former_user_id", sa.Uuid(), nullable=True))
    op.alter_column("chatrooms", "user_id", nullable=True)
    op.execute(
        "ALTER TABLE chatrooms ADD CONSTRAINT ck_chatrooms_owner"
        " CHECK (num_nonnulls(user_id, former_user_id) = 1) NOT VALID"
    )


def downgrade() -> None:
    op.drop_column("chatrooms", "former_user_id")
    op.alter_column("chatrooms", "user_id", nullable=False)
