"""Templates on the wire."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from sandkeep.wire.shape import Asked, Given, ShortText, Size


class TemplateBuild(Asked):
    """Each step runs by `bash -lc` as root, inside a sandbox made from `parent`."""

    name: ShortText
    parent: ShortText = "base"
    steps: list[str] = Field(min_length=1, max_length=256)
    runtime: Literal["gvisor", "runc"] = "gvisor"
    memory: Size = "1GiB"
    disk: Size = "8GiB"
    step_timeout: float = 1800.0


class TemplateView(Given):
    id: str
    name: str
    project_id: str
    phase: Literal["building", "ready", "failed", "deleting"]
    reason: str
    parent: str | None
    steps: list[str]
    size: int
    log: str
    created_at: datetime
