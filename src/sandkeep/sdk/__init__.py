"""The Python SDK. Everything public is named here; nothing is imported before it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "AsyncClient": "sandkeep.sdk._async.client",
    "AsyncFiles": "sandkeep.sdk._async.files",
    "AsyncProcess": "sandkeep.sdk._async.process",
    "AsyncSandbox": "sandkeep.sdk._async.sandbox",
    "AsyncSnapshots": "sandkeep.sdk._async.snapshots",
    "AsyncTerminal": "sandkeep.sdk._async.terminal",
    "AsyncTimeline": "sandkeep.sdk._async.timeline",
    "Client": "sandkeep.sdk._sync.client",
    "Dropped": "sandkeep.sdk.results",
    "ExecResult": "sandkeep.sdk.results",
    "FileEvent": "sandkeep.sdk.results",
    "FileInfo": "sandkeep.sdk.results",
    "Files": "sandkeep.sdk._sync.files",
    "Output": "sandkeep.sdk.results",
    "Process": "sandkeep.sdk._sync.process",
    "ProcessInfo": "sandkeep.sdk.results",
    "ProcessResult": "sandkeep.sdk.results",
    "Sandbox": "sandkeep.sdk._sync.sandbox",
    "SandkeepError": "sandkeep.sdk.errors",
    "Snapshots": "sandkeep.sdk._sync.snapshots",
    "Terminal": "sandkeep.sdk._sync.terminal",
    "Timeline": "sandkeep.sdk._sync.timeline",
    "TreeResult": "sandkeep.sdk.results",
}

if TYPE_CHECKING:
    from sandkeep.sdk._async.client import AsyncClient
    from sandkeep.sdk._async.files import AsyncFiles
    from sandkeep.sdk._async.process import AsyncProcess
    from sandkeep.sdk._async.sandbox import AsyncSandbox
    from sandkeep.sdk._async.snapshots import AsyncSnapshots
    from sandkeep.sdk._async.terminal import AsyncTerminal
    from sandkeep.sdk._async.timeline import AsyncTimeline
    from sandkeep.sdk._sync.client import Client
    from sandkeep.sdk._sync.files import Files
    from sandkeep.sdk._sync.process import Process
    from sandkeep.sdk._sync.sandbox import Sandbox
    from sandkeep.sdk._sync.snapshots import Snapshots
    from sandkeep.sdk._sync.terminal import Terminal
    from sandkeep.sdk._sync.timeline import Timeline
    from sandkeep.sdk.errors import SandkeepError
    from sandkeep.sdk.results import (
        Dropped,
        ExecResult,
        FileEvent,
        FileInfo,
        Output,
        ProcessInfo,
        ProcessResult,
        TreeResult,
    )

__all__ = [
    "AsyncClient",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncSandbox",
    "AsyncSnapshots",
    "AsyncTerminal",
    "AsyncTimeline",
    "Client",
    "Dropped",
    "ExecResult",
    "FileEvent",
    "FileInfo",
    "Files",
    "Output",
    "Process",
    "ProcessInfo",
    "ProcessResult",
    "Sandbox",
    "SandkeepError",
    "Snapshots",
    "Terminal",
    "Timeline",
    "TreeResult",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sandkeep.sdk' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
