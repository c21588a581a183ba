"""A sandbox: made, found, paused, resumed, and what runs in it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sandkeep.sdk import errors
from sandkeep.sdk._async.client import AsyncClient, default_client
from sandkeep.sdk._async.files import AsyncFiles
from sandkeep.sdk._async.lists import feed, pages
from sandkeep.sdk._async.portable import Progress, export_sandbox, import_sandbox
from sandkeep.sdk._async.process import AsyncProcess
from sandkeep.sdk._async.snapshots import AsyncSnapshots
from sandkeep.sdk._async.terminal import AsyncTerminal, terminal_query
from sandkeep.sdk._async.timeline import AsyncTimeline
from sandkeep.sdk._async.transport import NO_LIMIT
from sandkeep.sdk.fields import SandboxFields
from sandkeep.sdk.requests import (
    exec_body,
    fresh_key,
    fresh_tag,
    given,
    point_of,
    quoted,
    seconds,
    shaped,
    snapshot_ref,
    start_message,
)
from sandkeep.sdk.results import ExecResult, ProcessInfo, exec_result, process_result

if TYPE_CHECKING:
    from sandkeep.wire.archives import VerifiedView
    from sandkeep.wire.browse import DiffView, RestoreView
    from sandkeep.wire.events import EventView
    from sandkeep.wire.sandboxes import (
        Commit,
        Hold,
        Network,
        OnExpiry,
        OnFailure,
        Persistence,
        Phase,
        ReceiptView,
        Runtime,
        StatsView,
        WhyView,
    )
    from sandkeep.wire.snapshots import SnapshotKind, SnapshotView

Size = int | str
Duration = float | str
_UNCHANGED: Any = object()


class AsyncSandbox(SandboxFields):
    """A sandbox on the server; this object can be made anew at any time with `get`.

    Sizes are bytes or text like "1GiB"; durations are seconds or text like "1h". As a context manager it deletes the
    sandbox at the end only when its persistence is `ephemeral`.
    """

    def __init__(self, client: AsyncClient, answer: Mapping[str, Any]) -> None:
        """`answer`: a SandboxView as it came; programs use `create`, `get` and `list`."""
        super().__init__(answer)
        self.client = client
        self._transport = client.transport
        self._path = f"/v1/sandboxes/{self.id}"
        self.files = AsyncFiles(client.transport, self.id)
        self.snapshots = AsyncSnapshots(client.transport, self.id)
        self.timeline = AsyncTimeline(client.transport, self.id)

    @classmethod
    async def create(
        cls,
        name: str | None = None,
        *,
        template: str | None = None,
        runtime: "Runtime | None" = None,
        persistence: "Persistence | None" = None,
        cpus: float | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        pids: int | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        network: "Network | None" = None,
        ttl: Duration | None = None,
        on_expiry: "OnExpiry | None" = None,
        pause_or_disk: bool | None = None,
        on_failure: "OnFailure | None" = None,
        grace: Duration | None = None,
        source: str | None = None,
        commit: "Commit | None" = None,
        timeline: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        client: AsyncClient | None = None,
    ) -> "AsyncSandbox":
        """A new sandbox, running; or the one of this name, if its spec is the same. What is not given, the server
        chooses. Safe to repeat: each call carries an idempotency key (`idempotency_key` to choose it).

        `source`: `NAME@SNAPSHOT`, whose disk it begins with. `commit`: of `persistence="snapshot"`, what becomes of a session
        at its stop (default never). `timeline`: as `sandbox.timeline.set` takes it, like `{"every": "1h", "keep_daily": 7}`.
        `on_failure`: what follows when its machine ends by itself (default restart).
        `grace`: an ephemeral sandbox is deleted so long after its last `heartbeat()`.
        Raises AlreadyExists (same name, other spec), QuotaExceeded, NoCapacity, InvalidArgument, NotFound (template).
        """
        client = client or default_client()
        body = given(
            name=name,
            template=template,
            runtime=runtime,
            persistence=persistence,
            cpus=cpus,
            memory=memory,
            disk=disk,
            pids=pids,
            env=dict(env) if env is not None else None,
            labels=dict(labels) if labels is not None else None,
            network=network,
            ttl=ttl,
            on_expiry=on_expiry,
            pause_or_disk=pause_or_disk,
            on_failure=on_failure,
            grace=grace,
            source=source,
            commit=commit,
            timeline=dict(timeline) if timeline is not None else None,
        )
        headers = {"Idempotency-Key": idempotency_key or fresh_key()}
        answer = await client.transport.call("POST", "/v1/sandboxes", body=body, headers=headers, again=True)
        return cls(client, answer)

    @classmethod
    async def from_file(
        cls,
        source: str | Path | IO[bytes],
        key: str,
        *,
        name: str | None = None,
        disk_only: bool = False,
        idempotency_key: str | None = None,
        progress: Progress | None = None,
        client: AsyncClient | None = None,
    ) -> "AsyncSandbox":
        """A new sandbox from a file of `export`, stopped, or paused with its memory; `disk_only` leaves that aside. `name`:
        instead of the one in the file; `progress`: is told the bytes of each piece sent. Nothing is left when it raises:
        InvalidArgument (another key, a damaged file), Unsupported (memory that does not fit), AlreadyExists, QuotaExceeded,
        NoCapacity."""
        client = client or default_client()
        options: dict[str, Any] = {"idempotency_key": idempotency_key, "progress": progress}
        answer = await import_sandbox(client.transport, source, key, name=name, disk_only=disk_only, **options)
        return cls(client, answer)

    @classmethod
    async def get(cls, name_or_id: str, *, client: AsyncClient | None = None) -> "AsyncSandbox":
        """Raises NotFound."""
        client = client or default_client()
        answer = await client.transport.call("GET", f"/v1/sandboxes/{quoted(name_or_id)}", again=True)
        return cls(client, answer)

    @classmethod
    async def list(
        cls,
        *,
        labels: Mapping[str, str] | None = None,
        phases: "Sequence[Phase] | None" = None,
        name: str | None = None,
        client: AsyncClient | None = None,
    ) -> "AsyncIterator[AsyncSandbox]":
        """All sandboxes that have all these labels and one of these phases, fetched as they are asked for."""
        client = client or default_client()
        wanted = [f"{key}={value}" for key, value in (labels or {}).items()]
        query = given(label=wanted or None, phase=[*phases] if phases else None, name=name)
        async for item in pages(client.transport, "/v1/sandboxes", query):
            yield cls(client, item)

    async def __aenter__(self) -> "AsyncSandbox":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.persistence == "ephemeral":
            try:
                await self.delete()
            except errors.NotFound:
                return

    # What runs in it

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: Duration | None = None,
        stdin: str | bytes | None = None,
        no_resume: bool = False,
        snapshot_first: bool = False,
    ) -> ExecResult:
        """Run a shell line or an argv list to its end. A failing command is a result, not an exception.

        `timeout`: then everything it started is killed, `timed_out` is set and exit_code is 137. Wakes a paused or
        stopped sandbox, unless `no_resume` (then Conflict). Never sent twice. For long output use `start_process`.
        `snapshot_first`: its disk is kept as it is before; if that cannot be done, nothing runs.
        """
        body = exec_body(
            command,
            user=user,
            cwd=cwd,
            env=env,
            timeout=timeout,
            stdin=stdin,
            no_resume=no_resume,
            snapshot_first=snapshot_first,
        )
        # The server ends it at the timeout; some more time is for waking up and the way back.
        patience = NO_LIMIT if timeout is None else seconds(timeout) + self._transport.timeout
        return exec_result(await self._transport.call("POST", self._path + "/exec", body=body, timeout=patience))

    async def start_process(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: Duration | None = None,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        no_resume: bool = False,
        snapshot_first: bool = False,
        resume_within: float = 300.0,
    ) -> AsyncProcess:
        """Start a shell line or an argv list and return at once; see AsyncProcess for what it can do.

        `stdin`: whether it will be written to. `pty`: a terminal of so many columns and rows. `timeout`: the process
        and what it started are killed then, attached or not. `snapshot_first`: see `exec`.
        """
        if snapshot_first:
            await self.snapshots.create(cause="exec")
        tag = fresh_tag()
        message = start_message(command, tag=tag, cwd=cwd, env=env, timeout=timeout, stdin=stdin, pty=pty)
        process = AsyncProcess(
            self._transport,
            self.id,
            {"tag": tag},
            pty=pty is not None,
            stdin=stdin,
            user=user,
            resume_within=resume_within,
        )
        await process.start(message, no_resume=no_resume)
        return process

    async def attach(
        self, pid: int, *, offset: int = 0, pty: bool = False, resume_within: float = 300.0
    ) -> AsyncProcess:
        """To a process that runs, or ended a short while ago, from a byte of its output on (0: as far back as it is
        kept). `pty`: whether input goes to its terminal. Raises NotFound."""
        process = AsyncProcess(
            self._transport, self.id, {"pid": pid}, pty=pty, offset=offset, resume_within=resume_within
        )
        await process.connect()
        return process

    async def processes(self, *, ended: bool = False) -> Sequence[ProcessInfo]:
        """What was started through the API and runs; with `ended` also what ended a short while ago."""
        # Only so does the agent say where the output of the living ends.
        message = {"includeEnded": True}
        answer = await self._transport.call(
            "POST", self._path + "/agent/process.Process/List", body=message, again=True
        )
        found = []
        for entry in answer.get("processes", []):
            config = entry.get("config", {})
            command = (str(config.get("cmd", "")), *map(str, config.get("args", [])))
            end = entry.get("ended")
            result = process_result(end) if isinstance(end, dict) else None
            if result is not None and not ended:
                continue
            found.append(
                ProcessInfo(int(entry["pid"]), command, config.get("cwd"), int(entry.get("offset", 0)), result)
            )
        return found

    async def open_terminal(
        self,
        command: Sequence[str] | None = None,
        *,
        columns: int = 80,
        rows: int = 24,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        no_resume: bool = False,
        resume_within: float = 300.0,
    ) -> AsyncTerminal:
        """A terminal over one WebSocket; default a login shell."""
        query = terminal_query(command, columns=columns, rows=rows, user=user, cwd=cwd, env=env, no_resume=no_resume)
        terminal = AsyncTerminal(self._transport, self.id, query, resume_within=resume_within)
        await terminal.connect()
        return terminal

    # Its life

    async def pause(self, *, hold: "Hold | None" = None, or_disk: bool | None = None) -> None:
        """Memory, processes and disk stay as they are. `hold` disk (default) or memory: where the memory waits.
        `or_disk`: what cannot be saved becomes a stop that keeps the disk. Raises PauseFailed; it then runs on."""
        await self._verb("pause", given(hold=hold, or_disk=or_disk))

    async def resume(self) -> None:
        await self._verb("resume")

    async def stop(self) -> None:
        """End its machine; the disk stays, unless it is ephemeral."""
        await self._verb("stop")

    async def start(self, *, rescue: bool = False) -> None:
        """A new machine on the kept disk. `rescue`: a full disk holds some more until the next stop, or start without it."""
        await self._verb("start", given(rescue=rescue or None) or None)

    async def archive(self) -> None:
        """Move what is stopped, or paused on disk, to the object store. Its local copy goes only after everything was read back
        from there. Raises Conflict, Unavailable (the store); it is then as it was."""
        await self._verb("archive", timeout=NO_LIMIT)

    async def wake(self, *, disk_only: bool = False) -> None:
        """Back from the object store, as it was: paused, or stopped. `disk_only`: without its memory. `exec`, `start` and the
        like do this by themselves."""
        await self._verb("wake", given(disk_only=disk_only or None) or None, timeout=NO_LIMIT)

    async def export(
        self, target: str | Path | IO[bytes], *, key: str | None = None, progress: Progress | None = None
    ) -> str:
        """What is stopped, or paused on disk, as one file for `from_file` of another server; the key that opens it: a fresh one
        unless `key` is one. A file that is named is there when it is whole. It stays as it is. Raises Conflict, Unsupported."""
        return await export_sandbox(self._transport, self._path, target, key, progress)

    async def verify_archive(self, snapshot: "str | SnapshotView | None" = None) -> "VerifiedView":
        """Restore its archive, or that of a snapshot, into a scratch place, and compare: `intact` and `reason` of what was found.
        Changes nothing. Raises Conflict (there is none), NoCapacity, Unavailable."""
        body = given(snapshot=snapshot_ref(snapshot) if snapshot is not None else None)
        path = self._path + "/archive/verify"
        answer = await self._transport.call("POST", path, body=body or None, again=True, timeout=NO_LIMIT)
        view: VerifiedView = shaped("archives.VerifiedView", answer)
        return view

    async def _verb(self, verb: str, body: dict[str, Any] | None = None, timeout: float | None = None) -> None:
        answer = await self._transport.call("POST", f"{self._path}/{verb}", body=body, again=True, timeout=timeout)
        self._know(answer)

    async def update(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        cpus: float | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        pids: int | None = None,
        ttl: Duration | None = _UNCHANGED,
        on_expiry: "OnExpiry | None" = None,
        pause_or_disk: bool | None = None,
        on_failure: "OnFailure | None" = None,
    ) -> None:
        """Change what is given. `ttl` counts from now; None removes the lifetime. `labels` replaces all labels."""
        body = given(
            labels=dict(labels) if labels is not None else None,
            cpus=cpus,
            memory=memory,
            disk=disk,
            pids=pids,
            on_expiry=on_expiry,
            pause_or_disk=pause_or_disk,
            on_failure=on_failure,
        )
        if ttl is not _UNCHANGED:
            body["ttl"] = ttl
        self._know(await self._transport.call("PATCH", self._path, body=body, again=True))

    async def delete(self) -> None:
        """For good, from any phase."""
        await self._transport.call("DELETE", self._path, again=True)

    async def refresh(self) -> None:
        self._know(await self._transport.call("GET", self._path, again=True))

    async def wait(self, *phases: "Phase", timeout: Duration = 60.0) -> None:
        """Until it is in one of these phases (default: running). Raises DeadlineExceeded."""
        limit = seconds(timeout)
        query = {"phase": list(phases) or ["running"], "timeout": limit}
        answer = await self._transport.call(
            "GET", self._path + "/wait", query=query, again=True, timeout=limit + self._transport.timeout
        )
        self._know(answer)

    async def heartbeat(self) -> None:
        """Sign of life for a sandbox made with `grace`."""
        await self._transport.call("POST", self._path + "/heartbeat", again=True)

    # Its moments

    async def snapshot(
        self,
        name: str | None = None,
        *,
        kind: "SnapshotKind | None" = None,
        tags: Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> "SnapshotView":
        """Keep it as it is now, with `kind="full"` its memory and processes, too; `snapshots.create`."""
        return await self.snapshots.create(name, kind=kind, tags=tags, idempotency_key=idempotency_key)

    async def commit(self, name: str | None = None, *, idempotency_key: str | None = None) -> "SnapshotView":
        """Of one with `persistence="snapshot"`: its disk as it is now is where its next sessions start, and a snapshot (of this
        name). Raises Conflict (commit is never), Unsupported (another persistence)."""
        return await self.snapshots.commit(name, idempotency_key=idempotency_key)

    async def rollback(
        self, snapshot: "str | SnapshotView", *, kind: "SnapshotKind | None" = None, keep_before: bool = True
    ) -> None:
        """Back to a snapshot (its name, id or view), under the same id, name and policies; it runs again if it ran. From a full
        one, processes go on as they were then, unless `kind="disk"`.

        The moment before is kept as a snapshot, unless `keep_before` is False: what is newer is gone then. Never sent
        twice. Raises NotFound.
        """
        body = given(snapshot=snapshot_ref(snapshot), kind=kind, keep_before=keep_before)
        self._know(await self._transport.call("POST", self._path + "/rollback", body=body))

    async def diff(
        self,
        before: "str | SnapshotView | None",
        after: "str | SnapshotView | None" = None,
        *,
        limit: int = 10_000,
    ) -> "DiffView":
        """What differs between two points in time: files, and packages of dpkg, pip and npm. Each point is a snapshot of this
        sandbox (its name, id or view), NAME@SNAPSHOT of another, or None: as it is now. Nothing is started.

        `limit`: of files; `counts` is of all. Raises NotFound, TooLarge.
        """
        return await self.client.diff(point_of(self.id, before), point_of(self.id, after), limit=limit)

    async def restore(
        self,
        snapshot: "str | SnapshotView",
        path: str,
        *,
        to: str | None = None,
        snapshot_first: bool = False,
        no_resume: bool = False,
    ) -> "RestoreView":
        """Put a file, a link or a folder of a snapshot back, with owners, modes and times: a file replaces what has its name, a
        folder is filled up and keeps what else it has. `to`: another place; with a slash at the end, a folder for it.

        Wakes a paused or stopped sandbox, unless `no_resume` (then Conflict). Raises NotFound, NoCapacity.
        """
        body = given(snapshot=snapshot_ref(snapshot), path=path, to=to)
        body |= {"snapshot_first": snapshot_first, "no_resume": no_resume}
        answer = await self._transport.call("POST", self._path + "/restore", body=body, timeout=NO_LIMIT)
        view: RestoreView = shaped("browse.RestoreView", answer)
        return view

    async def promote(
        self,
        into: "AsyncSandbox | str",
        *,
        kind: "SnapshotKind | None" = None,
        delete_others: bool = False,
        idempotency_key: str | None = None,
    ) -> "AsyncSandbox":
        """Make the state of this fork that of another sandbox (its parent), which keeps its id, name, address, policies and
        identity; the moment before is kept as a snapshot of it. `delete_others`: its other forks. Safe to repeat, as `create`
        is. Returns the parent. Raises NotFound, Conflict, Unsupported, PauseFailed (its memory cannot be saved:
        `kind="disk"`)."""
        body = given(into=into if isinstance(into, str) else into.id, kind=kind, delete_others=delete_others)
        headers = {"Idempotency-Key": idempotency_key or fresh_key()}
        answer = await self._transport.call("POST", self._path + "/promote", body=body, headers=headers, again=True)
        return type(self)(self.client, answer)

    async def fork(
        self,
        count: int = 1,
        *,
        snapshot: "str | SnapshotView | None" = None,
        kind: "SnapshotKind | None" = None,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> "Sequence[AsyncSandbox]":
        """So many new sandboxes as this one is now, or was at a `snapshot`, each running and answering. Without one, a
        snapshot is made first and stays.

        `kind`: `"full"` with memory and processes, `"disk"` without; by default with, where there are some and the runtime
        can. `name`: of the fork; several are called NAME-1, NAME-2, ... Safe to repeat, as `create` is.
        Raises NotFound, AlreadyExists (a sandbox of such a name), QuotaExceeded, NoCapacity, PauseFailed (its memory cannot be
        saved: `unsavable` names why).
        """
        reference = None if snapshot is None else snapshot_ref(snapshot)
        body = given(count=count, snapshot=reference, kind=kind, name=name)
        headers = {"Idempotency-Key": idempotency_key or fresh_key()}
        answer = await self._transport.call("POST", self._path + "/fork", body=body, headers=headers, again=True)
        return [type(self)(self.client, item) for item in answer["items"]]

    # What is known of it

    async def receipt(self) -> "ReceiptView":
        """What was checked before it was let into the world when it last came back, or was forked. Raises NotFound."""
        answer = await self._transport.call("GET", self._path + "/receipt", again=True)
        view: ReceiptView = import_module("sandkeep.wire.sandboxes").ReceiptView.model_validate(answer)
        return view

    async def why(self) -> "WhyView":
        """What it is doing, since when, why, what comes next, and what you can do."""
        answer = await self._transport.call("GET", self._path + "/why", again=True)
        view: WhyView = import_module("sandkeep.wire.sandboxes").WhyView.model_validate(answer)
        return view

    async def stats(self) -> "StatsView":
        answer = await self._transport.call("GET", self._path + "/stats", again=True)
        view: StatsView = import_module("sandkeep.wire.sandboxes").StatsView.model_validate(answer)
        return view

    async def logs(self, *, limit: int | None = None) -> str:
        """The end of what its runtime and agent printed, at most `limit` bytes."""
        answer = await self._transport.call("GET", self._path + "/logs", query=given(limit=limit), again=True)
        return str(answer["text"])

    async def events(self, *, after: int | None = None, follow: bool = False) -> "AsyncIterator[EventView]":
        """What happened to it, oldest first; see AsyncClient.events."""
        model: type[EventView] = import_module("sandkeep.wire.events").EventView
        async for item in feed(self._transport, self._path + "/events", after, follow):
            yield model.model_validate(item)
