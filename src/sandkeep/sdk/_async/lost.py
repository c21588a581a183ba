"""Whether a process may still be there while its sandbox does not run: a paused one keeps it, a stopped one does not."""

from sandkeep.sdk import errors
from sandkeep.sdk._async.transport import AsyncTransport

_WITHOUT_PROCESSES = ("stopping", "stopped", "archiving", "archived", "waking", "failed", "deleting", "deleted")


async def refuse_lost(transport: AsyncTransport, sandbox_path: str, cause: errors.SandkeepError) -> None:
    """`sandbox_path`: /v1/sandboxes/<id>. Raises ProcessLost."""
    try:
        phase = str((await transport.call("GET", sandbox_path, again=True)).get("phase"))
    except errors.NotFound:
        phase = "deleted"
    except errors.SandkeepError:
        return
    if phase in _WITHOUT_PROCESSES:
        raise errors.ProcessLost(f"the process is gone: the sandbox is {phase}") from cause
