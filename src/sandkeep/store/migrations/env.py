"""Alembic's entry: runs the versions on the connection that `migrate` gave."""

from alembic import context

configuration = context.config
context.configure(
    connection=configuration.attributes["connection"],
    target_metadata=configuration.attributes["metadata"],
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
