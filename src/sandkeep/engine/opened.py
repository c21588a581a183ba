"""What a file that carries a sandbox says of it, checked word by word: whoever has a key can make a file. Used by
engine/portable."""

import hashlib
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.ids import IdKind, is_id
from sandkeep.domain.names import check_name
from sandkeep.domain.portable import KEY_BYTES, Carried
from sandkeep.domain.sandbox import Persistence, Spec
from sandkeep.engine.archive.keys import DamagedError
from sandkeep.engine.records import Generation, Record
from sandkeep.lib.remote import adapter

CANNOT = frozenset({Persistence.EPHEMERAL, Persistence.SNAPSHOT})
"""What keeps nothing of its own that could travel."""
_MOST_TEMPLATE = 64
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .:+-]{0,255}")
_CHECKSUM = re.compile(r"[0-9]{1,19}:[0-9a-f]{64}")
_AGENT = re.compile(r"[A-Za-z0-9]{1,128}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")


@dataclass(frozen=True)
class Memory:
    """token: what opens the agent in it."""

    generation: Generation
    agent: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Opened:
    """A file's head, believed as far as it goes."""

    key: bytes = field(repr=False)
    manifest: bytes = field(repr=False)
    carried: Carried
    memory: Memory | None


def needs(record: Record, token: str) -> dict[str, Any]:
    """What a manifest says of the memory that the sandbox is paused with. The token lies in that memory, too, and opens nothing
    but its agent."""
    assert record.generation is not None
    return {"agent": record.agent, "token": token, **asdict(replace(record.generation, id=""))}


def said(record: Record) -> dict[str, Any]:
    """What it says of the sandbox: what its owner agreed with the platform, and no secret of the platform's."""
    return {"id": record.id, "name": record.sandbox.name, "spec": asdict(replace(record.spec, template=""))}


def signing(data_key: bytes) -> bytes:
    """Of the manifest."""
    return hashlib.blake2b(b"manifest", key=data_key, digest_size=KEY_BYTES).digest()


def believed(key: bytes, manifest: bytes, facts: dict[str, Any]) -> Opened:
    """What a manifest says of its sandbox, made of our own words. Raises DamagedError."""
    try:
        told, wanted = facts["record"], facts["needs"]
        spec = adapter(Spec).validate_python(told["spec"])
        named = spec.template_name[:_MOST_TEMPLATE]
        spec = replace(spec, template="", template_name=named if named.isprintable() else "unknown")
        spec.check()
        name, source = told["name"], told["id"]
        if name is not None:
            check_name(name)
        if not is_id(source, IdKind.SANDBOX) or spec.persistence in CANNOT:
            raise ValueError("its sandbox is none that can be exported")
        memory = _memory(wanted, facts["memory"]) if wanted or facts["memory"] else None
        if memory and spec.persistence is not Persistence.FULL:
            raise ValueError("it has memory, and keeps none")
        size, saved_at = int(facts["size"]), float(facts["created_at"])
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError("what it says of its sandbox is not what an export says") from error
    except InvalidArgument as error:
        raise DamagedError(f"what it says of its sandbox cannot be: {error.message}") from error
    return Opened(key, manifest, Carried(name, spec, size, memory is not None, source, saved_at), memory)


def _memory(told: dict[str, Any], files: dict[str, int]) -> Memory:
    """Raises ValueError, KeyError, TypeError."""
    checksums, requires, agent, token = told["files"], told["requires"], told["agent"], told["token"]
    if not files or set(checksums) != set(files) or not all(map(_CHECKSUM.fullmatch, checksums.values())):
        raise ValueError("its memory is not whole")
    if not all(_is_plain(name) and _is_plain(value) for name, value in requires.items()):
        raise ValueError("what its memory needs cannot be")
    if not _AGENT.fullmatch(agent) or not _TOKEN.fullmatch(token):
        raise ValueError("its memory has no agent")
    return Memory(Generation("", float(told["created_at"]), dict(checksums), dict(requires)), agent, token)


def _is_plain(value: Any) -> bool:
    """Not a path, above all: the names of builds are looked up in folders."""
    return isinstance(value, bool | int) or (isinstance(value, str) and _PLAIN.fullmatch(value) is not None)
