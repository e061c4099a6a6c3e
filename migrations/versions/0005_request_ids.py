"""Request ids: which request asked for a reply, a code, or something to be done at Stripe.

Only adds columns that may be null, which rewrites no table: the earlier code goes on working on this schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = ("reply_jobs", "otp_outbox", "stripe_events", "billing_closures")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("request_id", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_column(table, "request_id")
