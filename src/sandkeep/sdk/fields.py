"""What is known of a sandbox, as properties; shared by the async and the sync Sandbox."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandkeep.wire.sandboxes import (
        ConditionView,
        Hold,
        Network,
        OnExpiry,
        OnFailure,
        Persistence,
        Phase,
        Runtime,
        SandboxView,
    )


class SandboxFields:
    """As of the last answer from the server; `refresh()` asks again. Sizes in bytes, durations in seconds."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self._know(answer)

    def _know(self, answer: Mapping[str, Any]) -> None:
        """Take over a SandboxView as it came; it is checked when something of it is asked for."""
        self._answer = answer
        self._checked: SandboxView | None = None

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<{type(self).__name__} {self.id}{name} {self.phase}>"

    @property
    def view(self) -> "SandboxView":
        """All fields, as the server gave them."""
        if self._checked is None:
            # Imported here: the models cost more time than all else, and most programs only run commands.
            from sandkeep.wire.sandboxes import SandboxView

            self._checked = SandboxView.model_validate(self._answer)
        return self._checked

    @property
    def id(self) -> str:
        return str(self._answer["id"])

    @property
    def name(self) -> str | None:
        name: str | None = self._answer["name"]
        return name

    @property
    def phase(self) -> "Phase":
        phase: Phase = self._answer["phase"]
        return phase

    @property
    def hold(self) -> "Hold | None":
        """Of a paused sandbox: whether its memory is held in memory or on disk."""
        return self.view.hold

    @property
    def reason(self) -> str:
        """Why it is in its phase."""
        return self.view.reason

    @property
    def since(self) -> datetime:
        return self.view.since

    @property
    def conditions(self) -> "Sequence[ConditionView]":
        return self.view.conditions

    @property
    def template(self) -> str:
        return self.view.template

    @property
    def runtime(self) -> "Runtime":
        return self.view.runtime

    @property
    def trust(self) -> str:
        """`untrusted code`, or `trusted code only` where the runtime shares the host's kernel (runc)."""
        return self.view.trust

    @property
    def persistence(self) -> "Persistence":
        persistence: Persistence = self._answer["persistence"]
        return persistence

    @property
    def cpus(self) -> float:
        return self.view.cpus

    @property
    def memory(self) -> int:
        return self.view.memory

    @property
    def disk(self) -> int:
        return self.view.disk

    @property
    def pids(self) -> int:
        return self.view.pids

    @property
    def env(self) -> Mapping[str, str]:
        return self.view.env

    @property
    def labels(self) -> Mapping[str, str]:
        return self.view.labels

    @property
    def network(self) -> "Network":
        return self.view.network

    @property
    def ttl(self) -> float | None:
        return self.view.ttl

    @property
    def on_expiry(self) -> "OnExpiry":
        return self.view.on_expiry

    @property
    def expires_at(self) -> datetime | None:
        return self.view.expires_at

    @property
    def pause_or_disk(self) -> bool:
        return self.view.pause_or_disk

    @property
    def on_failure(self) -> "OnFailure":
        """What follows when its machine ends by itself."""
        return self.view.on_failure

    @property
    def failures(self) -> int:
        """How often in a row its machine ended by itself, or could not be started again."""
        return self.view.failures

    @property
    def restart_at(self) -> datetime | None:
        """When it is planned to be started again."""
        return self.view.restart_at

    @property
    def created_at(self) -> datetime:
        return self.view.created_at
