"""The runner: what control may ask of a node. The same Protocol in process, over a socket, on Kubernetes."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from sandkeep.domain.archive import Rehearsed
from sandkeep.domain.browse import Difference, FileAt, Point
from sandkeep.domain.capability import DiskCapabilities, RuntimeCapabilities
from sandkeep.domain.node import (
    Capacity,
    Endpoint,
    Fact,
    Observed,
    OperationRef,
    Quarantined,
    SandboxOnNode,
    SnapshotOnNode,
    TemplateOnNode,
    Usage,
)
from sandkeep.domain.portable import Carried
from sandkeep.domain.receipt import Receipt
from sandkeep.domain.sandbox import Hold, Lifetime, Limits
from sandkeep.domain.timeline import SnapshotSizes, Timeline

PROTOCOL_VERSION = 1
OLDEST_PROTOCOL = 1
"""The range that this version speaks, as server and as runner."""


@dataclass(frozen=True)
class NodeInfo:
    """The answer to the handshake. `started_at` changes when the runner restarted."""

    node_id: str
    protocol: int
    version: str
    started_at: float
    runtimes: tuple[RuntimeCapabilities, ...]
    disks: DiskCapabilities
    installation: str | None = None
    """The control plane that the node serves; None: none yet."""


class Runner(Protocol):
    """Guarantees:

    * A mutating call carries an OperationRef. The same operation id gives the same outcome, also after a restart of
      the runner; an epoch below the sandbox's raises Superseded. A call that was interrupted (kill -9) is done or
      undone before the node serves again, and repeating it with its id tells which.
    * When a call returns, its outcome is durable on the node. When it raises, the sandbox is as before, or in the
      settled phase that `show` then tells.
    * One operation at a time per sandbox; `delete` waits for none: it cancels what is under way, works from every
      phase and never needs a resume. Deleting what is unknown is no error.
    * `create` is admitted by memory, disk and slots or raises NoCapacity at once, with what is free.
    * Facts are kept until acknowledged and come in order, each once per watch.
    """

    async def handshake(self) -> NodeInfo: ...

    async def pair(self, installation: str) -> None:
        """From now on the node serves this control plane. Durable; changes nothing else."""
        ...

    async def capacity(self) -> Capacity: ...

    async def create(self, operation: OperationRef, sandbox: SandboxOnNode) -> Observed:
        """Disk, network, machine, agent: running and answering when it returns."""
        ...

    async def storage(self) -> str:
        """Why the node can write nothing down now (its disk is full, or fails); '' when it can."""
        ...

    async def start(self, operation: OperationRef, sandbox_id: str, rescue: bool) -> Observed:
        """A new machine on the kept disk. `rescue`: which may hold some more until the next stop or start without it;
        such a start of what runs in rescue takes the room back. Condition Rescue while it lasts."""
        ...

    async def stop(self, operation: OperationRef, sandbox_id: str) -> Observed:
        """End the machine; keep the disk, durably. From paused on disk: drop the memory, keep that moment's disk."""
        ...

    async def pause(self, operation: OperationRef, sandbox_id: str, hold: Hold, or_disk: bool) -> Observed:
        """Raises PauseFailed with the machine running on. With `or_disk`, what cannot be saved becomes a stop, and
        the answer says so (phase stopped, condition MemorySavable false)."""
        ...

    async def resume(self, operation: OperationRef, sandbox_id: str) -> Observed: ...

    async def archive(self, operation: OperationRef, sandbox_id: str) -> Observed:
        """What is stopped, or paused on disk, goes to the store: disk, and memory if there is some. The local copy goes after it
        was read back from there; whatever fails before leaves it as it is. Raises Conflict, Unavailable."""
        ...

    async def wake(self, operation: OperationRef, sandbox_id: str, disk_only: bool) -> Observed:
        """Back from the store: paused with its memory, or stopped. What is not as it was put there is refused (Conflict), and
        memory that does not fit this host (Unsupported): it then stays archived."""
        ...

    def export_sandbox(self, sandbox_id: str, key: str) -> AsyncGenerator[bytes, None]:
        """The file (domain/portable) that carries what is stopped, or paused on disk, to another installation; opened there by
        this key. To be closed. It changes nothing. Raises Conflict, Unsupported, NotFound, also when it is deleted meanwhile."""
        ...

    async def look_portable(self, key: str, disk_only: bool, content: AsyncIterator[bytes]) -> Carried:
        """What is in a file, of which `content` is the beginning up to its manifest. Raises InvalidArgument for what is none, or
        does not open; what `import_sandbox` would raise before anything is made."""
        ...

    async def import_sandbox(
        self,
        operation: OperationRef,
        sandbox: SandboxOnNode,
        key: str,
        disk_only: bool,
        content: AsyncIterator[bytes],
    ) -> Observed:
        """As `create`, with the disk that is in the file, and its memory unless `disk_only`: stopped, or paused. Nothing is left
        when it raises: InvalidArgument for a file that is not as it was made, Unsupported for memory that does not fit here."""
        ...

    async def rehearse(self, sandbox_id: str, snapshot_id: str | None) -> Rehearsed:
        """Whether the archive of it (of one of its snapshots) can be restored, by doing so in a scratch place. Changes nothing.
        Raises NotFound, Conflict for one without an archive; NoCapacity, Unavailable when it cannot be tried."""
        ...

    async def update(
        self, operation: OperationRef, sandbox_id: str, limits: Limits, lifetime: Lifetime, labels: dict[str, str]
    ) -> Observed: ...

    async def delete(self, operation: OperationRef, sandbox_id: str) -> None: ...

    async def show(self, sandbox_id: str) -> Observed | None:
        """None: the node has never heard of it. What was deleted here in the last 90 days is `deleted`."""
        ...

    async def sandboxes(self) -> list[Observed]:
        """Every sandbox that the node has a record of."""
        ...

    async def receipt(self, sandbox_id: str) -> Receipt | None:
        """Of the last time that it came back, or was made from another; None: never. Raises NotFound."""
        ...

    async def export_record(self, sandbox_id: str) -> SandboxOnNode | None:
        """What the node's own record knows of a sandbox: for adoption by a control plane that lost it."""
        ...

    async def quarantined(self) -> list[Quarantined]:
        """What the pool holds and no record names, with all that is known of it."""
        ...

    async def restore_quarantined(self, operation: OperationRef, sandbox: SandboxOnNode) -> Observed:
        """A stopped sandbox on the quarantined disk of its id. Raises NotFound."""
        ...

    async def delete_quarantined(self, operation: OperationRef, quarantined_id: str) -> None:
        """A disk (with its memory images), one memory image, or a template. Raises NotFound when it is not there,
        Conflict when it is not quarantined."""
        ...

    async def endpoint(self, sandbox_id: str) -> Endpoint:
        """Raises Conflict when there is no running machine."""
        ...

    async def usage(self, sandbox_ids: list[str] | None) -> list[Usage]: ...

    async def log(self, sandbox_id: str, limit: int) -> str: ...

    async def make_template(self, operation: OperationRef, sandbox_id: str, template: TemplateOnNode) -> TemplateOnNode:
        """A template from a sandbox's disk as it is now. The sandbox must be stopped."""
        ...

    async def snapshot(
        self, operation: OperationRef, sandbox_id: str, snapshot: SnapshotOnNode, commit: bool
    ) -> SnapshotOnNode:
        """Keep this moment, from any settled phase; what runs runs on. Durable. `commit`: from now on its sessions start from it
        (persistence=snapshot; raises Conflict for others). With memory, where there is some, its outside
        connections are reset; raises PauseFailed when it cannot be saved, and Conflict, Unsupported when there is none."""
        ...

    async def adopt_snapshot(
        self,
        operation: OperationRef,
        sandbox_id: str,
        snapshot: SnapshotOnNode,
        source_id: str,
        source_snapshot_id: str,
    ) -> SnapshotOnNode:
        """A snapshot of another sandbox becomes one of this one, too: a rollback to it keeps this one's identity. Durable. Raises
        NotFound."""
        ...

    async def archive_snapshot(self, operation: OperationRef, sandbox_id: str, snapshot_id: str) -> SnapshotOnNode:
        """It goes to the store, and its local copy when it was read back from there; whatever fails before leaves it as it is.
        What needs its disk then raises Conflict. Raises NotFound, Conflict, Unavailable."""
        ...

    async def wake_snapshot(self, operation: OperationRef, sandbox_id: str, snapshot_id: str) -> SnapshotOnNode:
        """Back from the store. What is not as it was put there is refused (Conflict): it then stays archived."""
        ...

    async def delete_snapshot(self, operation: OperationRef, sandbox_id: str, snapshot_id: str) -> None:
        """Snapshots that were made after it stay whole. Deleting what is gone is no error."""
        ...

    async def rollback(self, operation: OperationRef, sandbox_id: str, snapshot_id: str, memory: bool) -> Observed:
        """Back to this moment in place, under the same identity: with a new machine when it ran, else stopped. When the start
        fails it is stopped on the snapshot's disk. `memory`: processes go on as they were then; without a machine, or when
        that fails, it is paused at that moment. Raises NotFound; Internal, Unsupported, Conflict for memory that cannot be
        restored, before anything was touched."""
        ...

    async def fork(self, operation: OperationRef, sandbox: SandboxOnNode, snapshot_id: str, memory: bool) -> Observed:
        """As `create`, on a copy of the snapshot's disk, with an identity of its own. `memory`: and of its memory and
        processes. Raises NotFound; Internal, Unsupported for memory that cannot be restored."""
        ...

    async def snapshots(self) -> list[SnapshotOnNode]:
        """All that the node keeps. Those that a sandbox's timeline asks for at the end of a machine it makes by itself."""
        ...

    async def set_timeline(self, operation: OperationRef, sandbox_id: str, timeline: Timeline) -> Observed: ...

    async def changed(self, sandbox_id: str) -> bool:
        """Whether its disk may hold anything that the snapshot it came from last does not. Raises NotFound."""
        ...

    async def snapshot_sizes(self, sandbox_id: str, fresh: bool) -> SnapshotSizes | None:
        """As computed in the background, None before that; `fresh`: computed now. Raises NotFound when a snapshot goes
        meanwhile."""
        ...

    # Paths and names are `raw` (domain/browse). They are looked up below the root of that disk, whatever a guest made of it: no
    # link leads out. Each raises NotFound, also for what is deleted meanwhile, and InvalidArgument.

    async def list_folder(self, point: Point, path: str, after: str, limit: int) -> list[FileAt]:
        """Up to so many names (at most 1,000) above `after`, by their bytes. Links are not followed, `path` may be one."""
        ...

    async def stat_path(self, point: Point, path: str, follow: bool) -> FileAt: ...

    def read_file(self, point: Point, path: str) -> AsyncGenerator[bytes, None]:
        """A regular file, in chunks. To be closed. Ends with an error when nobody takes them for two minutes."""
        ...

    def read_tree(
        self, point: Point, path: str, name: str, follow: bool, exclude: tuple[str, ...]
    ) -> AsyncGenerator[bytes, None]:
        """As `read_file`: a file, a link or a folder with all that is in it as a tar stream, called `name` in it. `follow`: a
        link there, and what is too deep is named in it and left out; else that is InvalidArgument."""
        ...

    async def diff(self, before: Point, after: Point, limit: int) -> Difference:
        """Of two disks of this node; the first `limit` files by path. Changes nothing."""
        ...

    async def delete_template(self, operation: OperationRef, template_id: str) -> None:
        """Raises InUse while a sandbox was made from it or a template is built on it."""
        ...

    async def templates(self) -> list[TemplateOnNode]: ...

    def watch(self, after_seq: int) -> AsyncIterator[Fact]:
        """Facts above `after_seq`, then as they come. Ends when the runner does."""
        ...

    async def acknowledge(self, seq: int) -> None:
        """Facts up to `seq` are no longer needed."""
        ...

    async def fsck(self) -> dict[str, Any]:
        """Records against the kernel and the pool: {'findings': [{kind, subject, detail}], 'counts': {...}}."""
        ...

    async def repair(self) -> None:
        """End machines and take away networks that nothing owns, as after a restart, while the node serves."""
        ...
