"""The first schema: projects, keys, sandboxes, templates, events, idempotency, nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("name", sa.String(40), nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("project_id", sa.String(24), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("project_id", sa.String(24), nullable=False),
        sa.Column("name", sa.String(40)),
        sa.Column("template", sa.String(24), nullable=False),
        sa.Column("template_name", sa.String(40), nullable=False),
        sa.Column("runtime", sa.String(16), nullable=False),
        sa.Column("persistence", sa.String(16), nullable=False),
        sa.Column("cpus", sa.Float, nullable=False),
        sa.Column("memory", _Whole, nullable=False),
        sa.Column("disk", _Whole, nullable=False),
        sa.Column("pids", _Whole, nullable=False),
        sa.Column("env", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("network", sa.String(16), nullable=False),
        sa.Column("ttl", sa.Float),
        sa.Column("on_expiry", sa.String(16), nullable=False),
        sa.Column("grace", sa.Float),
        sa.Column("pause_or_disk", sa.Boolean, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("hold", sa.String(16)),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("conditions", sa.JSON, nullable=False),
        sa.Column("epoch", _Whole, nullable=False),
        sa.Column("operation", sa.String(24)),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.UniqueConstraint("project_id", "name", name="sandbox_name"),
    )
    op.create_index("sandbox_page", "sandboxes", ["project_id", "created_at", "id"])
    op.create_index("sandbox_expiry", "sandboxes", ["expires_at"], sqlite_where=sa.text("expires_at IS NOT NULL"))
    op.create_table(
        "templates",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("project_id", sa.String(24), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("size", _Whole, nullable=False),
        sa.Column("parent", sa.String(24)),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("log", sa.String, nullable=False),
        sa.UniqueConstraint("project_id", "name", name="template_name"),
    )
    op.create_table(
        "events",
        sa.Column("seq", _Whole, primary_key=True, autoincrement=True),
        sa.Column("project_id", sa.String(24), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(24), nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("event_subject", "events", ["subject", "seq"])
    op.create_index("event_project", "events", ["project_id", "seq"])
    op.create_table(
        "idempotency",
        sa.Column("project_id", sa.String(24), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(24), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(24), nullable=False),
        sa.Column("last_fact", _Whole, nullable=False),
    )


def downgrade() -> None:
    for table in ("nodes", "idempotency", "events", "templates", "sandboxes", "keys", "projects"):
        op.drop_table(table)
