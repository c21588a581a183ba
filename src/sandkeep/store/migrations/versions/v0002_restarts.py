"""What follows when a machine ends by itself: the rule, the count of ends in a row, and when the next try is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("on_failure", sa.String(16), nullable=False, server_default="restart"))
    op.add_column("sandboxes", sa.Column("failures", sa.Integer, nullable=False, server_default="0"))
    op.add_column("sandboxes", sa.Column("restart_at", sa.Float))
    op.add_column("sandboxes", sa.Column("ended_machine", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE sandboxes SET on_failure = 'stop' WHERE persistence = 'ephemeral'")
    op.create_index("sandbox_failures", "sandboxes", ["failures"], sqlite_where=sa.text("failures > 0"))


def downgrade() -> None:
    op.drop_index("sandbox_failures", "sandboxes")
    for column in ("ended_machine", "restart_at", "failures", "on_failure"):
        op.drop_column("sandboxes", column)
