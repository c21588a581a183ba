"""What follows when a machine ends by itself: the rule, the count of ends in a row, and when the next try is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = (
    sa.Column("on_failure", sa.String(16), nullable=False, server_default="restart"),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column("restart_at", sa.Float),
    sa.Column("ended_machine", sa.Integer, nullable=False, server_default="0"),
)


def upgrade() -> None:
    for column in _COLUMNS:
        op.add_column("sandboxes", column.copy())
    op.execute("UPDATE sandboxes SET on_failure = 'stop' WHERE persistence = 'ephemeral'")
    op.create_index("sandbox_failures", "sandboxes", ["failures"], sqlite_where=sa.text("failures > 0"))


def downgrade() -> None:
    op.drop_index("sandbox_failures", "sandboxes")
    for column in reversed(_COLUMNS):
        op.drop_column("sandboxes", column.name)
