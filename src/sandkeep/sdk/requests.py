"""Request bodies as plain functions, shared by the async and the sync SDK. Only what was given is sent."""

import base64
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sandkeep.sdk.errors import InvalidArgument

if TYPE_CHECKING:
    from sandkeep.wire.snapshots import SnapshotView

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def quoted(ref: str) -> str:
    """An id or a name as one segment of a path."""
    from urllib.parse import quote

    # `.` and `..` would be taken for steps in the path.
    return quote(ref, safe="").replace(".", "%2E") or "%20"


def query_of(fields: Mapping[str, Any]) -> str:
    """A query whose texts are names of files: bytes that are not UTF-8 go as they are. A list gives a field for each."""
    from urllib.parse import quote

    pairs = [(name, one) for name, value in fields.items() for one in (value if isinstance(value, list) else [value])]
    return "&".join(f"{name}={quote(str(value).encode('utf-8', 'surrogateescape'), safe='/')}" for name, value in pairs)


def point_of(sandbox_id: str, point: "str | SnapshotView | None") -> str:
    """One side of a comparison. NAME@SNAPSHOT stays; other text is a snapshot of this sandbox; None: as it is now."""
    if point is None:
        return sandbox_id
    ref = snapshot_ref(point)
    return ref if "@" in ref or not isinstance(point, str) else f"{sandbox_id}@{ref}"


def snapshot_ref(snapshot: "str | SnapshotView") -> str:
    """Of one given by its name, its id or its view. The id of a view: its name may be another snapshot's by now."""
    return snapshot if isinstance(snapshot, str) else snapshot.id


def shaped(name: str, answer: Any) -> Any:
    """A wire shape by `module.Class`; imported at the first answer, since pydantic is slow to import."""
    module, _, kind = name.partition(".")
    return getattr(import_module(f"sandkeep.wire.{module}"), kind).model_validate(answer)


def encoded(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def seconds(value: float | str) -> float:
    """Seconds from a number or from text like 30s, 5m, 1h30m. Raises InvalidArgument.

    Only for deadlines that the SDK itself keeps; what the server keeps is sent as written.
    """
    if not isinstance(value, str):
        return float(value)
    text = value.strip().lower()
    try:
        return float(text)
    except ValueError:
        pass
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument(f"{value!r} is not a duration", hint="write seconds, or like 30s, 5m, 1h30m")
    return sum(float(number) * _UNIT[unit] for number, unit in parts)


def exec_body(
    command: str | Sequence[str],
    *,
    user: str | None,
    cwd: str | None,
    env: Mapping[str, str] | None,
    timeout: float | str | None,
    stdin: str | bytes | None,
    no_resume: bool,
    snapshot_first: bool = False,
) -> bytes:
    """An ExecRequest."""
    body: dict[str, Any] = {"command": command if isinstance(command, str) else list(command)}
    if user is not None:
        body["user"] = user
    if cwd is not None:
        body["cwd"] = cwd
    if env:
        body["env"] = dict(env)
    if timeout is not None:
        body["timeout"] = timeout
    if isinstance(stdin, bytes):
        body["stdin"] = base64.b64encode(stdin).decode()
        body["stdin_encoding"] = "base64"
    elif stdin is not None:
        body["stdin"] = stdin
    if no_resume:
        body["no_resume"] = True
    if snapshot_first:
        body["snapshot_first"] = True
    return encoded(body)


def start_message(
    command: str | Sequence[str],
    *,
    tag: str,
    cwd: str | None,
    env: Mapping[str, str] | None,
    timeout: float | str | None,
    stdin: bool,
    pty: tuple[int, int] | None,
) -> dict[str, Any]:
    """The agent's StartRequest. A shell line runs by a login bash, as the server's exec does. `pty`: columns, rows."""
    argv = ["/bin/bash", "-l", "-c", command] if isinstance(command, str) else list(command)
    if not argv:
        raise InvalidArgument("the command is empty")
    process = given(cmd=argv[0], args=argv[1:], envs=dict(env) if env else None, cwd=cwd)
    message: dict[str, Any] = {"process": process, "tag": tag, "stdin": stdin, "detached": True, "offset": 0}
    if timeout is not None:
        message["timeoutMs"] = round(seconds(timeout) * 1000)
        if message["timeoutMs"] <= 0:
            raise InvalidArgument(
                f"timeout {timeout} is not above 0", hint="leave it out for no limit", field="timeout"
            )
    if pty is not None:
        message["pty"] = pty_size(*pty)
    return message


def pty_size(columns: int, rows: int) -> dict[str, Any]:
    return {"size": {"cols": columns, "rows": rows}}


def fresh_tag() -> str:
    """Names one process for good: a pid may be given again after a stop, a tag is not."""
    return f"sdk-{secrets.token_hex(10)}"


def fresh_key() -> str:
    """An Idempotency-Key."""
    return secrets.token_hex(16)


def signal_name(signal: int | str) -> str | int:
    """As the agent wants it: a number stays one, SIGINT or INT becomes SIGNAL_SIGINT."""
    if isinstance(signal, int):
        return int(signal)
    name = signal.upper().removeprefix("SIGNAL_")
    return f"SIGNAL_{name if name.startswith('SIG') else 'SIG' + name}"
