"""What a runtime or a disk driver can do: the records that drivers declare and callers ask."""

from dataclasses import dataclass, field

from sandkeep.domain.sandbox import Hold, Persistence, RuntimeKind


@dataclass(frozen=True)
class RuntimeCapabilities:
    """A driver's own record. `notes` are sentences for people, `unsupported` maps a feature to the reason."""

    kind: RuntimeKind
    available: bool
    version: str
    isolation: str
    trusted_code_only: bool
    persistence: frozenset[Persistence]
    holds: frozenset[Hold]
    unsupported: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class DiskCapabilities:
    kind: str
    hard_limit: bool
    copy_on_write: bool
    atomic: bool = False
    """A snapshot is one instant, also while processes write."""
    notes: tuple[str, ...] = ()
