"""API keys: made, proved, revoked. A key is `sk_` and 43 characters; only its SHA-256 is kept."""

import hashlib
import secrets
from pathlib import Path

from sandkeep.contracts.clock import Clock
from sandkeep.control.events import Events
from sandkeep.domain.errors import InvalidArgument, NotFound, Unauthenticated
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.principal import Key, Principal
from sandkeep.store import keys as store

DEFAULT_PROJECT = "default"
_LONGEST = 128
_REFUSED = 10_000
"""How many unknown keys are remembered."""


class Keys:
    def __init__(self, events: Events, clock: Clock, grants: Path | None = None) -> None:
        """`grants`: a folder that only root and the server can write; each file in it grants one key."""
        self._events = events
        self._clock = clock
        self._grants = grants
        self._proved: dict[str, Principal] = {}
        self._refused: dict[str, None] = {}

    async def default_project(self) -> str:
        """The id of the default project, made when missing."""
        async with self._events.change() as ledger:
            found = await store.project_by_name(ledger.transaction, DEFAULT_PROJECT)
            if found is None:
                found = new_id(IdKind.PROJECT)
                await store.add_project(ledger.transaction, found, DEFAULT_PROJECT, self._clock.now())
            return found

    async def create(self, project_id: str, name: str) -> tuple[Key, str]:
        """The key and its secret, which nobody can see again."""
        if not 1 <= len(name) <= 200 or not name.isprintable():
            raise InvalidArgument("a key's name has 1 to 200 printable characters", field="name")
        secret = "sk_" + secrets.token_urlsafe(32)
        key = Key(new_id(IdKind.KEY), project_id, name, secret[:9], self._clock.now())
        async with self._events.change() as ledger:
            await store.add(ledger.transaction, key, _digest(secret))
            await ledger.tell(EventKind.KEY_CREATED, project_id, key.id, name=name)
        self._proved[_digest(secret)] = Principal(key.id, project_id)
        return key, secret

    async def load(self) -> None:
        """All keys that open something: whoever has one is never a stranger, also after a restart."""
        async with self._events.change() as ledger:
            for digest, key in await store.active(ledger.transaction):
                self._proved[digest] = Principal(key.id, key.project_id)

    def granted(self, secret: str) -> bool:
        """Whether a grant waits for its first use."""
        return self._grants is not None and (self._grants / _digest(secret)).exists()

    def remembered(self, secret: str) -> Principal | None:
        """Whose key it is when it was proved before, without asking the database. Raises Unauthenticated when it was
        refused before (keys are random, so what was unknown stays unknown), and for what is none."""
        if not secret.startswith("sk_") or len(secret) > _LONGEST:
            raise Unauthenticated("this is not an API key", hint="keys begin with sk_; see sandkeep key create")
        digest = _digest(secret)
        if digest in self._refused:
            raise _unknown()
        return self._proved.get(digest)

    async def prove(self, secret: str) -> Principal:
        """Raises Unauthenticated. The look-up is by digest, so timing tells nothing of the secret."""
        digest = _digest(secret)
        async with self._events.change() as ledger:
            key = await store.by_digest(ledger.transaction, digest)
        if key is None:
            key = await self._granted(digest, secret[:9])
        if key is None:
            self._refused[digest] = None
            if len(self._refused) > _REFUSED:
                del self._refused[next(iter(self._refused))]
            raise _unknown()
        self._proved[digest] = principal = Principal(key.id, key.project_id)
        return principal

    async def _granted(self, digest: str, prefix: str) -> Key | None:
        """The local administrator's key, at its first use: its digest names a file, so that nobody but the server ever
        writes to the database. A grant serves once: if we die in between, `sandkeep up` makes another."""
        if self._grants is None:
            return None
        try:
            name = (self._grants / digest).read_text()
            (self._grants / digest).unlink()
        except (OSError, UnicodeDecodeError):
            return None
        project_id = await self.default_project()
        key = Key(new_id(IdKind.KEY), project_id, name, prefix, self._clock.now())
        async with self._events.change() as ledger:
            await store.add(ledger.transaction, key, digest)
            await ledger.tell(EventKind.KEY_CREATED, project_id, key.id, name=name)
        return key

    async def page(self, project_id: str) -> list[Key]:
        async with self._events.change() as ledger:
            return await store.page(ledger.transaction, project_id)

    async def revoke(self, project_id: str, key_id: str) -> None:
        async with self._events.change() as ledger:
            if not await store.revoke(ledger.transaction, project_id, key_id, self._clock.now()):
                raise NotFound(f"there is no active key {key_id}", hint="sandkeep key list")
            await ledger.tell(EventKind.KEY_REVOKED, project_id, key_id)
        self._proved = {digest: p for digest, p in self._proved.items() if p.key_id != key_id}


def grant(folder: Path, name: str) -> str:
    """A new secret, and the grant for it: the server makes the key when it is first used. Earlier grants end."""
    for earlier in folder.iterdir():
        earlier.unlink(missing_ok=True)
    secret = "sk_" + secrets.token_urlsafe(32)
    (folder / _digest(secret)).write_text(name)
    return secret


def _unknown() -> Unauthenticated:
    return Unauthenticated("the API key is unknown or was revoked", hint="make one: sandkeep key create NAME")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
