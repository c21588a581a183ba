"""What becomes of a session of persistence=snapshot."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("commit_rule", sa.String(16)))


def downgrade() -> None:
    op.drop_column("sandboxes", "commit_rule")
