"""What doctor says: a finding, and its remedy."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """`missing` ones keep sandboxes from running; `warning` ones take something away."""

    level: Level
    what: str
    remedy: str = ""
