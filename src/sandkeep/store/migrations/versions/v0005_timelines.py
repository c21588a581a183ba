"""The timeline of a sandbox, and what a snapshot was made for."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("timeline", sa.JSON))
    op.create_index("sandbox_timeline", "sandboxes", ["id"], sqlite_where=sa.text("timeline IS NOT NULL"))
    op.add_column("snapshots", sa.Column("cause", sa.String(16), nullable=False, server_default="asked"))
    op.execute("UPDATE snapshots SET cause = 'fork' WHERE reason = 'for a fork'")
    op.execute("UPDATE snapshots SET cause = 'rollback' WHERE reason LIKE 'before the rollback to %'")


def downgrade() -> None:
    op.drop_column("snapshots", "cause")
    op.drop_index("sandbox_timeline", "sandboxes")
    op.drop_column("sandboxes", "timeline")
