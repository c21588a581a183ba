"""Snapshots that are in the object store: how many bytes of it each is."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("archived", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("snapshots", "archived")
