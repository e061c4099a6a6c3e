"""Sessions, the limits of sign-in, the audit log.

Refresh tokens that are there go on: their families become sessions. Access tokens of before are refused, as they name
no session. The earlier code cannot sign anybody in on this schema, so it must be stopped first; it was never released.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RISKS = {
    "CREATE INDEX ix_users_unverified": "never released: there were no rows to keep others from",
    "CREATE INDEX ix_otp_outbox_number_hash": "a table of minutes: what waits to be delivered",
    "ALTER TABLE refresh_tokens": "never released, and the earlier code has to be stopped for it",
}


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("refreshed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"], unique=False)
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_index(
        "ix_users_unverified", "users", ["created_at"], unique=False, postgresql_where=sa.text("verified_at IS NULL")
    )
    op.execute(
        "INSERT INTO sessions (id, user_id, created_at, refreshed_at, expires_at) "
        "SELECT family_id, user_id, min(created_at), max(created_at), max(expires_at) FROM refresh_tokens "
        "GROUP BY family_id, user_id"
    )
    op.add_column("refresh_tokens", sa.Column("used_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_column("refresh_tokens", "user_id")
    op.drop_column("refresh_tokens", "id")
    op.drop_constraint(op.f("uq_refresh_tokens_token_hash"), "refresh_tokens", type_="unique")
    op.create_primary_key(op.f("pk_refresh_tokens"), "refresh_tokens", ["token_hash"])
    op.create_foreign_key(
        op.f("fk_refresh_tokens_family_id_sessions"),
        "refresh_tokens",
        "sessions",
        ["family_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.add_column("otp_outbox", sa.Column("number_hash", sa.LargeBinary(), nullable=True))
    op.add_column("otp_outbox", sa.Column("purpose", sa.Text(), nullable=True))
    op.create_index(op.f("ix_otp_outbox_number_hash"), "otp_outbox", ["number_hash"], unique=False)
    op.create_table(
        "auth_limits",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("hits", sa.ARRAY(sa.DateTime(timezone=True)), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", "subject", name=op.f("pk_auth_limits")),
    )
    op.create_index(op.f("ix_auth_limits_expires_at"), "auth_limits", ["expires_at"], unique=False)
    op.create_table(
        "auth_failures",
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("began_at", name=op.f("pk_auth_failures")),
    )
    op.create_table(
        "known_networks",
        sa.Column("network_hash", sa.LargeBinary(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("network_hash", name=op.f("pk_known_networks")),
    )
    op.create_index(op.f("ix_known_networks_seen_at"), "known_networks", ["seen_at"], unique=False)
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("number_hash", sa.LargeBinary(), nullable=False),
        sa.Column("details", JSONB(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    op.create_index(op.f("ix_audit_events_number_hash"), "audit_events", ["number_hash"], unique=False)


def downgrade() -> None:
    op.drop_table("audit_events")
    op.drop_table("known_networks")
    op.drop_table("auth_failures")
    op.drop_table("auth_limits")
    op.drop_index(op.f("ix_otp_outbox_number_hash"), table_name="otp_outbox")
    op.drop_column("otp_outbox", "purpose")
    op.drop_column("otp_outbox", "number_hash")
    op.drop_constraint(op.f("fk_refresh_tokens_family_id_sessions"), "refresh_tokens", type_="foreignkey")
    op.drop_constraint(op.f("pk_refresh_tokens"), "refresh_tokens", type_="primary")
    op.add_column("refresh_tokens", sa.Column("id", sa.Uuid(), nullable=True))
    op.add_column("refresh_tokens", sa.Column("user_id", sa.Uuid(), nullable=True))
    op.execute(
        "UPDATE refresh_tokens SET id = gen_random_uuid(), user_id = sessions.user_id "
        "FROM sessions WHERE sessions.id = family_id"
    )
    op.alter_column("refresh_tokens", "id", nullable=False)
    op.alter_column("refresh_tokens", "user_id", nullable=False)
    op.create_primary_key(op.f("pk_refresh_tokens"), "refresh_tokens", ["id"])
    op.create_unique_constraint(op.f("uq_refresh_tokens_token_hash"), "refresh_tokens", ["token_hash"])
    op.create_foreign_key(
        op.f("fk_refresh_tokens_user_id_users"), "refresh_tokens", "users", ["user_id"], ["id"], ondelete="CASCADE"
    )
    op.create_index(op.f("ix_refresh_tokens_user_id"), "refresh_tokens", ["user_id"], unique=False)
    # The earlier release does not know of used ones, and would never delete a token that is used.
    op.execute("DELETE FROM refresh_tokens WHERE used_at IS NOT NULL")
    op.drop_column("refresh_tokens", "used_at")
    op.drop_index("ix_users_unverified", table_name="users")
    op.drop_table("sessions")
