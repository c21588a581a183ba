"""What is known of a sandbox, as properties; shared by the async and the sync Sandbox."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandkeep.wire.sandboxes import ConditionView, Hold, Network, OnExpiry, Persistence, Phase, Runtime, SandboxView


def sandbox_view(answer: Mapping[str, Any]) -> "SandboxView":
    # Imported at the first answer: the models cost more than the rest of the SDK's import.
    from sandkeep.wire.sandboxes import SandboxView

    return SandboxView.model_validate(answer)


class SandboxFields:
    """As of the last answer from the server; `refresh()` asks again. Sizes in bytes, durations in seconds."""

    def __init__(self, view: "SandboxView") -> None:
        self._view = view

    def __repr__(self) -> str:
        name = f" {self._view.name}" if self._view.name else ""
        return f"<{type(self).__name__} {self._view.id}{name} {self._view.phase}>"

    @property
    def view(self) -> "SandboxView":
        """All fields, as the server gave them."""
        return self._view

    @property
    def id(self) -> str:
        return self._view.id

    @property
    def name(self) -> str | None:
        return self._view.name

    @property
    def phase(self) -> "Phase":
        return self._view.phase

    @property
    def hold(self) -> "Hold | None":
        """Of a paused sandbox: whether its memory is held in memory or on disk."""
        return self._view.hold

    @property
    def reason(self) -> str:
        """Why it is in its phase."""
        return self._view.reason

    @property
    def since(self) -> datetime:
        return self._view.since

    @property
    def conditions(self) -> "Sequence[ConditionView]":
        return self._view.conditions

    @property
    def template(self) -> str:
        return self._view.template

    @property
    def runtime(self) -> "Runtime":
        return self._view.runtime

    @property
    def trust(self) -> str:
        """`untrusted code`, or `trusted code only` where the runtime shares the host's kernel (runc)."""
        return self._view.trust

    @property
    def persistence(self) -> "Persistence":
        return self._view.persistence

    @property
    def cpus(self) -> float:
        return self._view.cpus

    @property
    def memory(self) -> int:
        return self._view.memory

    @property
    def disk(self) -> int:
        return self._view.disk

    @property
    def pids(self) -> int:
        return self._view.pids

    @property
    def env(self) -> Mapping[str, str]:
        return self._view.env

    @property
    def labels(self) -> Mapping[str, str]:
        return self._view.labels

    @property
    def network(self) -> "Network":
        return self._view.network

    @property
    def ttl(self) -> float | None:
        return self._view.ttl

    @property
    def on_expiry(self) -> "OnExpiry":
        return self._view.on_expiry

    @property
    def expires_at(self) -> datetime | None:
        return self._view.expires_at

    @property
    def pause_or_disk(self) -> bool:
        return self._view.pause_or_disk

    @property
    def created_at(self) -> datetime:
        return self._view.created_at
