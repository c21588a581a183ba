"""The SDK's face: what is public, what it costs to import, that both halves and the server's errors agree."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sandkeep
from sandkeep import sdk
from sandkeep.domain import errors as domain_errors
from sandkeep.sdk import errors, versions
from sandkeep.sdk.requests import seconds
from sandkeep.wire import platform

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [
    "AsyncClient", "AsyncFiles", "AsyncProcess", "AsyncSandbox", "AsyncSnapshots", "AsyncTerminal", "AsyncTimeline",
    "Client", "Dropped", "ExecResult", "FileEvent", "FileInfo", "Files", "Output", "Process", "ProcessInfo",
    "ProcessResult", "Sandbox", "SandkeepError", "Snapshots", "Terminal", "Timeline", "TreeResult",
]  # fmt: skip


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    assert sdk.__all__ == PUBLIC
    assert all(getattr(sdk, name).__name__ == name for name in PUBLIC)
    assert sandkeep.__all__ == ["AsyncClient", "AsyncSandbox", "Client", "Sandbox", "SandkeepError", "__version__"]
    assert sandkeep.Sandbox is sdk.Sandbox


def test_sync_is_generated_from_async() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "unasync.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["Client", "Files", "Process", "Sandbox", "Snapshots", "Terminal", "Timeline"])
def test_both_halves_have_the_same_names(name: str) -> None:
    def members(kind: type) -> set[str]:
        return {key for key in vars(kind) if not key.startswith("_")} - {"aclose", "close"}

    assert members(getattr(sdk, name)) == members(getattr(sdk, "Async" + name))


def test_imports_are_lazy() -> None:
    heavy = "[m for m in ('httpx2', 'pydantic', 'click', 'anyio') if m in sys.modules]"
    assert run_python(f"import sys, sandkeep; print({heavy})") == "[]"
    assert run_python(f"import sys; from sandkeep import Sandbox, AsyncSandbox, Client; print({heavy})") == "[]"


def test_every_error_of_the_server_has_a_class_with_its_ancestors() -> None:
    mine = errors.every_error()
    for code, theirs in domain_errors.every_error().items():
        assert code in mine
        names = [kind.__name__ for kind in mine[code].__mro__]
        for ancestor in theirs.__mro__:
            if issubclass(ancestor, domain_errors.SandkeepError):
                assert ancestor.__name__ in names, f"{code} is no {ancestor.__name__}"
    tree = inspect.getdoc(errors) or ""
    assert all(kind.__name__ in tree for kind in mine.values())


def test_the_interface_version_is_the_servers() -> None:
    assert versions.API_VERSION == platform.API_VERSION


@pytest.mark.parametrize(
    ("told", "mine", "outcome"),
    [
        ({"version": "0.1.0", "api": 1, "oldest_client": "0.1.0"}, "0.1.3", None),
        ({"version": "0.3.0", "api": 1, "oldest_client": "0.1.0"}, "0.1.3", None),
        ({"version": "0.1.0", "api": 1, "oldest_client": "0.1.0"}, "0.2.0", "warning"),
        ({"version": "0.9.0", "api": 1, "oldest_client": "0.5.0"}, "0.4.9", errors.VersionMismatch),
        ({"version": "0.9.0", "api": 2, "oldest_client": "0.1.0"}, "0.4.9", errors.VersionMismatch),
        ({"hello": "world"}, "0.1.0", errors.VersionMismatch),
        ([], "0.1.0", errors.VersionMismatch),
    ],
)
def test_versions(told: object, mine: str, outcome: object) -> None:
    if isinstance(outcome, type):
        with pytest.raises(errors.VersionMismatch) as caught:
            versions.check_version(told, mine)
        assert caught.value.hint
    else:
        assert bool(versions.check_version(told, mine)) == (outcome == "warning")


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind", "message"),
    [
        (404, "application/problem+json", b'{"code":"not_found","detail":"no x","title":"t"}', errors.NotFound, "no x"),
        (409, "application/problem+json", b'{"code":"from_the_future","detail":"d"}', errors.Conflict, "d"),
        (404, "application/json", b'{"code":"not_found","message":"m"}', errors.NotFound, "m"),
        (404, "application/json", b'{"code":404,"message":"path"}', errors.NotFound, "path"),
        (401, "application/json", b'{"code":401,"message":"invalid username"}', errors.InvalidArgument, "invalid user"),
        (507, "application/json", b'{"code":507,"message":"full"}', errors.NoCapacity, "full"),
        (502, "text/html", b"<html>", errors.GuestError, "502"),
        (500, "text/html", b"\xff\xfe", errors.Internal, "500"),
        (418, "application/json", b"[1]", errors.Internal, "418"),
        (400, "application/problem+json", b'{"code":null,"detail":null,"details":7}', errors.InvalidArgument, "400"),
    ],
)
def test_answers_become_errors(
    status: int, content_type: str, body: bytes, kind: type[errors.SandkeepError], message: str
) -> None:
    error = errors.from_answer(status, {"content-type": content_type}, body)
    assert type(error) is kind
    assert message in str(error)
    assert error.status == status


def test_problem_members_become_details() -> None:
    body = b'{"code":"already_exists","detail":"d","hint":"h","fields":["cpus"],"details":{"b":1,"a":2}}'
    error = errors.from_answer(409, {"content-type": "application/problem+json", "retry-after": "2.5"}, body)
    assert (error.hint, error.retry_after) == ("h", 2.5)
    assert error.details == {"fields": ["cpus"], "b": 1, "a": 2}


@pytest.mark.parametrize(("text", "value"), [(3, 3.0), ("30s", 30.0), ("1h30m", 5400.0), ("250ms", 0.25), ("1.5", 1.5)])
def test_durations(text: float | str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "5x", "1h 30m", "m5"])
def test_not_durations(text: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        seconds(text)
