"""Which versions of a protocol two programs of ours have in common. Server and runner tell theirs with every call and
answer (drivers/runner, edge/runner): either may have been replaced while the other ran."""

from dataclasses import dataclass

from sandkeep.domain.errors import Unavailable

HEADER = "sandkeep-protocol"


@dataclass(frozen=True)
class Spoken:
    """version: of the program, for people; empty: one that does not tell."""

    oldest: int
    newest: int
    version: str = ""

    def header(self) -> str:
        return f"{self.oldest}-{self.newest} {self.version}".strip()

    def __str__(self) -> str:
        return str(self.oldest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


FIRST = Spoken(1, 1)
"""Of programs that do not tell."""


def parse(header: str | None) -> Spoken:
    """What cannot be understood is no version of ours."""
    if header is None:
        return FIRST
    numbers, _, version = header.partition(" ")
    oldest, _, newest = numbers.partition("-")
    if oldest.isdecimal() and newest.isdecimal():
        return Spoken(int(oldest), int(newest), version[:40])
    return Spoken(0, 0, "unknown")


def check(server: Spoken, runner: Spoken) -> None:
    """Raises Unavailable: it ends by itself when the other one has been restarted."""
    if server.oldest <= runner.newest and runner.oldest <= server.newest:
        return
    raise Unavailable(
        f"server {server.version or '(version unknown)'} speaks version {server} of the runner's protocol, "
        f"runner {runner.version or '(version unknown)'} speaks {runner}",
        hint="sandkeep up restarts both with the version that is installed",
        retry_after=5,
    )
