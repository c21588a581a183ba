"""The nft rules of an instance, kept true: remembers what is in the kernel, so that nothing is deleted blindly.

Synchronous; called by the driver in worker threads, one at a time.
"""

from collections.abc import Iterable

from sandkeep.drivers.network import rulesets
from sandkeep.drivers.network.layout import NetworkSettings
from sandkeep.drivers.network.nftables import Nft, NftError
from sandkeep.drivers.network.rulesets import BLOCKED, CHAINS, RESETTING, Kernel

_HOLDS = frozenset({BLOCKED, RESETTING})


class Guard:
    """Raises NftError."""

    def __init__(self, settings: NetworkSettings, nft: Nft) -> None:
        self._settings = settings
        self._nft = nft
        self._known: dict[int, frozenset[str]] = {}
        self._holds: dict[int, frozenset[str]] = {}  # what was asked; outlives a flush of the ruleset

    def read(self) -> Kernel:
        settings = self._settings
        tables = set(self._nft.run("list tables").splitlines())
        guard, link = f"table inet {settings.guard_table}", f"table netdev {settings.link_table}"
        kernel = rulesets.parse(
            settings,
            self._nft.run(f"list {guard}") if guard in tables else None,
            self._nft.run(f"list {link}") if link in tables else None,
        )
        self._known = dict(kernel.slots)
        return kernel

    def open(self) -> int:
        """Installs the base where it is missing, damaged or of another version, in one transaction that keeps every
        sandbox's elements. Returns how many of the two tables needed it."""
        kernel = self.read()
        for slot, names in kernel.slots.items():
            if names & _HOLDS and slot not in self._holds:
                self._holds[slot] = names & _HOLDS
        wrong = (kernel.version != rulesets.base_version(self._settings)) + (not kernel.link_table)
        if wrong:
            self._nft.run(rulesets.install(self._settings, kernel, present=kernel.version is not None))
        return wrong

    def close(self) -> None:
        kernel, settings = self.read(), self._settings
        lines = [f"delete table inet {settings.guard_table}"] if kernel.version is not None else []
        lines += [f"delete table netdev {settings.link_table}"] if kernel.link_table else []
        if lines:
            self._nft.run("\n".join(lines))
        self._known, self._holds = {}, {}

    def add(self, slot: int, names: Iterable[str], *, blocked: bool = False) -> None:
        """The sandbox's rules become exactly these (and what holds it). The link must exist."""
        if blocked:
            self._holds[slot] = self._holds.get(slot, frozenset()) | {BLOCKED}
        wanted = frozenset(names) | self._holds.get(slot, frozenset())

        def text() -> str:
            surplus = self._known.get(slot, frozenset()) - wanted
            return rulesets.remove(self._settings, slot, surplus) + "\n" + rulesets.add(self._settings, slot, wanted)

        try:
            self._nft.run(text())
        except NftError:
            self.open()  # somebody flushed the ruleset
            self._nft.run(text())
        self._known[slot] = wanted

    def remove(self, slot: int) -> None:
        """Whatever the kernel has of this sandbox goes; nothing happens when there is nothing."""
        self._holds.pop(slot, None)
        names = self._known.pop(slot, None)
        if names:
            try:
                self._nft.run(rulesets.remove(self._settings, slot, names))
                return
            except NftError:
                names = None
        if names is None:
            names = self.read().slots.get(slot)
            if names:
                self._nft.run(rulesets.remove(self._settings, slot, names))
                self._known.pop(slot, None)

    def hold(self, slot: int, holds: frozenset[str]) -> None:
        """Put the sandbox into exactly these of the sets `blocked` and `resetting`."""
        known = self._known.get(slot, frozenset())
        self._holds.pop(slot, None)
        if holds:
            self._holds[slot] = holds
        gone, fresh = (known & _HOLDS) - holds, holds - known
        if not gone and not fresh:
            return
        lines = [rulesets.remove(self._settings, slot, gone), rulesets.add(self._settings, slot, fresh)]
        try:
            self._nft.run("\n".join(lines))
        except NftError:
            self.open()
            known = self._known.get(slot, frozenset())
            gone = (known & _HOLDS) - holds
            lines = [rulesets.remove(self._settings, slot, gone), rulesets.add(self._settings, slot, holds)]
            self._nft.run("\n".join(lines))
        self._known[slot] = (known - _HOLDS) | holds

    def missing(self, slot: int, names: frozenset[str]) -> str:
        """What of these, and of the base that they hang on, the kernel does not hold; ''."""
        settings = self._settings
        try:
            kernel = rulesets.parse(settings, self._nft.run(f"list table inet {settings.guard_table}"), None)
            chains = "\n".join(self._nft.run(asked) for asked in rulesets.link_chains(settings, slot))
        except NftError as error:
            return str(error).splitlines()[0]
        if kernel.version != rulesets.base_version(settings):
            return "the rules of all sandboxes"
        lacking = names - CHAINS - kernel.slots.get(slot, frozenset())
        if lacking:
            return ", ".join(sorted(lacking))
        return "" if rulesets.are_whole(chains) else "rules of its link"

    def repair(self, wanted: dict[int, frozenset[str]]) -> int:
        """Brings back what is missing of the base and of these sandboxes (whose links must exist), in at most two
        transactions. Returns how many things were missing."""
        missing = self.open()
        kernel, lines = self.read(), []
        for slot, names in sorted(wanted.items()):
            lacking = (names | self._holds.get(slot, frozenset())) - self._known.get(slot, frozenset())
            lacking |= {name for name in CHAINS if (slot, name) in kernel.hollow}
            if lacking:
                missing += len(lacking)
                lines.append(rulesets.add(self._settings, slot, lacking))
        if lines:
            self._nft.run("\n".join(lines))
            self.read()
        return missing
