"""All tables on one page. Times are seconds since the epoch, sizes bytes; `project_id` is in every one."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData()
_Whole = BigInteger().with_variant(Integer(), "sqlite")

projects = Table(
    "projects",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("name", String(40), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("project_id", String(24), nullable=False),
    Column("name", String(200), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("project_id", String(24), nullable=False),
    Column("name", String(40)),
    Column("template", String(24), nullable=False),
    Column("template_name", String(40), nullable=False),
    Column("runtime", String(16), nullable=False),
    Column("persistence", String(16), nullable=False),
    Column("cpus", Float, nullable=False),
    Column("memory", _Whole, nullable=False),
    Column("disk", _Whole, nullable=False),
    Column("pids", _Whole, nullable=False),
    Column("env", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("network", String(16), nullable=False),
    Column("ttl", Float),
    Column("on_expiry", String(16), nullable=False),
    Column("grace", Float),
    Column("pause_or_disk", Boolean, nullable=False),
    Column("on_failure", String(16), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("hold", String(16)),
    Column("reason", String, nullable=False),
    Column("since", Float, nullable=False),
    Column("conditions", JSON, nullable=False),
    Column("epoch", _Whole, nullable=False),
    Column("operation", String(24)),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("failures", Integer, nullable=False),
    Column("restart_at", Float),
    Column("ended_machine", Integer, nullable=False),
    Column("origin", String(24)),
    Column("commit_rule", String(16)),
    Column("origin_memory", Boolean, nullable=False, server_default=false()),
    Column("timeline", JSON(none_as_null=True)),
    UniqueConstraint("project_id", "name", name="sandbox_name"),
    Index("sandbox_page", "project_id", "created_at", "id"),
    Index("sandbox_expiry", "expires_at", sqlite_where=text("expires_at IS NOT NULL")),
    Index("sandbox_failures", "failures", sqlite_where=text("failures > 0")),
    Index("sandbox_timeline", "id", sqlite_where=text("timeline IS NOT NULL")),
)

templates = Table(
    "templates",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("project_id", String(24), nullable=False),
    Column("name", String(40), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("size", _Whole, nullable=False),
    Column("parent", String(24)),
    Column("steps", JSON, nullable=False),
    Column("reason", String, nullable=False),
    Column("log", String, nullable=False),
    UniqueConstraint("project_id", "name", name="template_name"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("project_id", String(24), nullable=False),
    Column("sandbox_id", String(24), nullable=False),
    Column("name", String(40)),
    Column("kind", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("parent", String(24)),
    Column("phase", String(16), nullable=False),
    Column("reason", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("held", Float, nullable=False),
    Column("cause", String(16), nullable=False),
    Column("archived", _Whole),
    UniqueConstraint("sandbox_id", "name", name="snapshot_name"),
    Index("snapshot_sandbox", "sandbox_id", "created_at"),
)

events = Table(
    "events",
    metadata,
    Column("seq", _Whole, primary_key=True, autoincrement=True),
    Column("project_id", String(24), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("subject", String(24), nullable=False),
    Column("reason", String, nullable=False),
    Column("data", JSON, nullable=False),
    Index("event_subject", "subject", "seq"),
    Index("event_project", "project_id", "seq"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("project_id", String(24), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("subject", String(24), nullable=False),
    Column("created_at", Float, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(24), nullable=False),
    Column("last_fact", _Whole, nullable=False),
)
