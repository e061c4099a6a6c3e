"""Billing: customers and subscriptions at Stripe, its events, and what is left to do for erased accounts.

Only adds: the earlier code goes on working on this schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _time(name: str, *, nullable: bool = True) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _now(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "billing_customers",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("stripe_customer_id", sa.Text(), nullable=True),
        sa.Column("generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("sync_ticket", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("synced_ticket", sa.BigInteger(), server_default="0", nullable=False),
        _time("sync_began_at"),
        sa.Column("checkout_key", sa.Uuid(), nullable=True),
        sa.Column("checkout_session_id", sa.Text(), nullable=True),
        sa.Column("checkout_url", sa.Text(), nullable=True),
        sa.Column("checkout_terms", sa.Text(), nullable=True),
        _time("checkout_expires_at"),
        _time("checkout_confirmed_at"),
        _time("checkout_claimed_until"),
        _time("healed_at"),
        _now("created_at"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_billing_customers_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_billing_customers")),
        sa.UniqueConstraint("stripe_customer_id", name=op.f("uq_billing_customers_stripe_customer_id")),
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("stripe_subscription_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("price_id", sa.Text(), nullable=True),
        sa.Column("cancel_at_period_end", sa.Boolean(), nullable=False),
        _time("started_at"),
        _time("ended_at"),
        _time("current_period_end"),
        _time("pro_until"),
        _now("created_at"),
        _now("updated_at"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_subscriptions_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscriptions")),
        sa.UniqueConstraint("stripe_subscription_id", name=op.f("uq_subscriptions_stripe_subscription_id")),
    )
    op.create_index("ix_subscriptions_user_id", "subscriptions", ["user_id"], unique=False)
    op.create_table(
        "stripe_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        _time("due_at"),
        _time("not_before"),
        _time("stripe_created_at", nullable=False),
        _now("received_at"),
        _time("closed_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stripe_events")),
        sa.UniqueConstraint("event_id", name=op.f("uq_stripe_events_event_id")),
    )
    op.create_index(
        "ix_stripe_events_due_at", "stripe_events", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )
    op.create_index(
        "ix_stripe_events_unmatched",
        "stripe_events",
        ["received_at"],
        postgresql_where=sa.text("status = 'unmatched'"),
    )
    op.create_index("ix_stripe_events_closed_at", "stripe_events", ["closed_at"], unique=False)
    op.create_index("ix_stripe_events_customer_id", "stripe_events", ["customer_id"], unique=False)
    op.create_table(
        "billing_closures",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("stripe_customer_id", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        _time("due_at"),
        _time("not_before"),
        _now("created_at"),
        _time("confirmed_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_billing_closures")),
        sa.UniqueConstraint("stripe_customer_id", name=op.f("uq_billing_closures_stripe_customer_id")),
    )
    op.create_index(
        "ix_billing_closures_due_at", "billing_closures", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )
    op.create_table(
        "billing_reconciliation",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        _now("due_at"),
        _time("not_before"),
        _time("started_at"),
        _time("finished_at"),
        sa.Column("checked", sa.Integer(), server_default="0", nullable=False),
        sa.Column("drifted", sa.Integer(), server_default="0", nullable=False),
        sa.Column("total_drifted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unknown", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_billing_reconciliation")),
        sa.CheckConstraint("id = 1", name=op.f("ck_billing_reconciliation_one_row")),
    )
    op.execute("INSERT INTO billing_reconciliation (id) VALUES (1)")


def downgrade() -> None:
    op.drop_table("billing_reconciliation")
    op.drop_table("billing_closures")
    op.drop_table("stripe_events")
    op.drop_table("subscriptions")
    op.drop_table("billing_customers")
