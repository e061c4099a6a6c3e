"""The foreign key of deleted rooms: the account whose they were takes them along.

In a transaction of its own, and `users` first: requests that change a room lock them in that order, and one that has
locked `chatrooms` for itself before would be in a deadlock with them. Readers of either are not kept waiting.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RISKS = {"LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE": "for the moment that the key takes, which wants it anyway"}


def upgrade() -> None:
    op.execute("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")
    op.execute(
        "ALTER TABLE chatrooms ADD CONSTRAINT fk_chatrooms_former_user_id_users"
        " FOREIGN KEY (former_user_id) REFERENCES users (id) ON DELETE CASCADE NOT VALID"
    )


def downgrade() -> None:
    op.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
    op.execute("ALTER TABLE chatrooms DROP CONSTRAINT fk_chatrooms_former_user_id_users")
