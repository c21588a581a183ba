"""Snapshots of sandboxes, and which one a sandbox was forked from."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("project_id", sa.String(24), nullable=False),
        sa.Column("sandbox_id", sa.String(24), nullable=False),
        sa.Column("name", sa.String(40)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("parent", sa.String(24)),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("held", sa.Float, nullable=False),
        sa.UniqueConstraint("sandbox_id", "name", name="snapshot_name"),
    )
    op.create_index("snapshot_sandbox", "snapshots", ["sandbox_id", "created_at"])
    op.add_column("sandboxes", sa.Column("origin", sa.String(24)))


def downgrade() -> None:
    op.drop_table("snapshots")
    op.drop_column("sandboxes", "origin")
