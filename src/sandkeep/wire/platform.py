"""The platform itself on the wire: versions, runtimes, capacity, problems."""

from typing import Any

from pydantic import ConfigDict

from sandkeep.wire.shape import Given

API_VERSION = 1
OLDEST_CLIENT = "0.1.0"


class VersionView(Given):
    """A client older than `oldest_client` should be upgraded."""

    version: str
    api: int
    oldest_client: str
    runner: str | None


class RuntimeView(Given):
    """One row of the capability matrix, from the driver's own record."""

    name: str
    available: bool
    reason: str
    version: str
    isolation: str
    trust: str
    persistence: list[str]
    holds: list[str]
    unsupported: dict[str, str]
    notes: list[str]


class CapacityView(Given):
    """Bytes and counts."""

    memory_total: int
    memory_available: int
    memory_promised: int
    memory_limit: int
    pool_total: int
    pool_free: int
    pool_reserved: int
    slots_total: int
    slots_free: int


class NodeView(Given):
    node_id: str
    version: str
    disk_driver: str
    disk_notes: list[str]
    capacity: CapacityView


class Problem(Given):
    """RFC 9457 problem details. `code` is stable, `hint` says what to do next; more members may follow."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None
    details: dict[str, Any] | None = None
