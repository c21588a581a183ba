"""Templates: built step by step inside a sandbox of their own, kept under a name.

A build is a task of the server. If the server dies, the build is failed at the next start and its sandbox deleted.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import anyio
from anyio.abc import TaskGroup

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.guest import ExecRequest, Guest
from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events
from sandkeep.control.reach import Reach
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.errors import InUse, NotFound, SandkeepError, Unavailable
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.names import check_name
from sandkeep.domain.node import OperationRef, TemplateOnNode
from sandkeep.domain.quantities import counted
from sandkeep.domain.restart import OnFailure
from sandkeep.domain.sandbox import Limits, Persistence, RuntimeKind, Spec
from sandkeep.domain.template import Template, TemplatePhase
from sandkeep.lib.retry import delays
from sandkeep.store import sandboxes as sandbox_store
from sandkeep.store import templates as store

BUILD_LABEL = "sandkeep.build"
_LOG_LIMIT = 256 << 10


@dataclass
class _Build:
    """One under way here. `scope`: its steps, which a delete may cancel; what follows them runs to its end."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Templates:
    def __init__(
        self, events: Events, sandboxes: Sandboxes, reach: Reach, runner: Runner, guest: Guest, clock: Clock
    ) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._reach = reach
        self._runner = runner
        self._guest = guest
        self._clock = clock
        self._tasks: TaskGroup | None = None
        self._news = anyio.Event()
        self._building: dict[str, _Build] = {}

    def start(self, tasks: TaskGroup) -> None:
        self._tasks = tasks

    async def get(self, project_id: str, reference: str) -> Template:
        async with self._events.change() as ledger:
            found = await store.get(ledger.transaction, project_id, reference)
        if found is None:
            raise NotFound(f"there is no template {reference[:64]!r}", hint="sandkeep template list shows them")
        return found

    async def page(self, project_id: str) -> list[Template]:
        async with self._events.change() as ledger:
            return await store.page(ledger.transaction, project_id)

    async def changes(self) -> AsyncIterator[None]:
        """Yields at once, and then whenever a build has printed or ended."""
        while True:
            news = self._news
            yield
            await news.wait()

    def _changed(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def build(
        self,
        project_id: str,
        name: str,
        parent: str,
        steps: list[str],
        *,
        runtime: RuntimeKind,
        limits: Limits,
        step_timeout: float,
    ) -> Template:
        """Answers at once with the template in phase `building`. Raises NotFound, AlreadyExists, InvalidArgument."""
        check_name(name)
        limits.check()
        origin = await self.get(project_id, parent)
        template = Template(
            id=new_id(IdKind.TEMPLATE),
            project_id=project_id,
            name=name,
            phase=TemplatePhase.BUILDING,
            created_at=self._clock.now(),
            parent=origin.id,
            steps=tuple(steps),
        )
        self._building[template.id] = _Build()  # before anybody can see it
        try:
            await self._begin(template)
        except BaseException:
            del self._building[template.id]
            raise
        spec = Spec(
            template=origin.name,
            template_name=origin.name,
            runtime=runtime,
            persistence=Persistence.VOLUME,
            limits=limits,
            labels={BUILD_LABEL: template.id},
            on_failure=OnFailure.STOP,
        )
        assert self._tasks is not None
        self._tasks.start_soon(self._build, template, spec, step_timeout)
        return template

    async def _begin(self, template: Template) -> None:
        """It takes the place of one that failed. Raises AlreadyExists."""
        async with self._events.change() as ledger:
            earlier = await store.get(ledger.transaction, template.project_id, template.name)
            if earlier and earlier.phase is TemplatePhase.FAILED:
                await store.remove(ledger.transaction, earlier.id)
            await store.add(ledger.transaction, template)
            await ledger.tell(EventKind.TEMPLATE_BUILD_STARTED, template.project_id, template.id, name=template.name)

    async def _build(self, template: Template, spec: Spec, step_timeout: float) -> None:
        build = self._building[template.id]
        try:
            with build.scope:
                sandbox, _ = await self._sandboxes.create(template.project_id, None, spec, None, caller=template.id)
                for number, step in enumerate(template.steps, 1):
                    template = await self._note(template, f"[{number}/{len(template.steps)}] {step}\n")
                    reached = await self._reach.agent(template.project_id, sandbox.id, wake=False)
                    done = await self._guest.exec(
                        reached.endpoint,
                        ExecRequest(("/bin/bash", "-lc", step), user="root", cwd="/", timeout=step_timeout),
                    )
                    template = await self._note(template, (done.stdout + done.stderr).decode(errors="replace"))
                    if done.exit_code:
                        why = "ran out of time" if done.timed_out else f"ended with {done.exit_code}"
                        await self._fail(template, f"step {number} {why}: {step[:200]}")
                        return
            if build.scope.cancelled_caught:
                await self._fail(template, "its build was cancelled")
                return
            await self._sandboxes.stop(template.project_id, sandbox.id)
            made = await self._runner.make_template(
                OperationRef(new_id(IdKind.OPERATION), 0),
                sandbox.id,
                TemplateOnNode(template.id, template.name, template.created_at, 0, template.parent),
            )
            ready = replace(template, phase=TemplatePhase.READY, size=made.size)
            await self._write(ready, EventKind.TEMPLATE_READY)
        except SandkeepError as error:
            await self._fail(template, error.message)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(30):
                await self._discard(template)
            self._building.pop(template.id, None)
            build.ended.set()

    async def _discard(self, template: Template) -> None:
        """Its sandbox, found by its label: a create that was cancelled has told no id."""
        try:
            made = await self._sandboxes.page(
                template.project_id, limit=10, after=None, labels={BUILD_LABEL: template.id}, phases=[], name=None
            )
            for sandbox in made:
                await self._sandboxes.delete(template.project_id, sandbox.id, reason="its template build ended")
        except SandkeepError:
            pass  # gone already, or the reconciler finishes the deletion

    async def _note(self, template: Template, text: str) -> Template:
        noted = replace(template, log=(template.log + text)[-_LOG_LIMIT:])
        await self._write(noted)
        return noted

    async def _write(self, template: Template, kind: EventKind | None = None) -> None:
        """A build is nobody's request: it waits for a database that is away."""
        waits = delays(0.5, cap=5.0)
        while True:
            try:
                async with self._events.change() as ledger:
                    await store.save(ledger.transaction, template)
                    if kind:
                        await ledger.tell(kind, template.project_id, template.id, template.reason, name=template.name)
                return self._changed()
            except Unavailable:
                await self._clock.sleep(next(waits))

    async def _fail(self, template: Template, reason: str) -> None:
        await self._write(replace(template, phase=TemplatePhase.FAILED, reason=reason), EventKind.TEMPLATE_FAILED)

    async def delete(self, project_id: str, reference: str) -> None:
        """Cancels its build. Raises NotFound, InUse while sandboxes were made from it."""
        template = await self.get(project_id, reference)
        build = self._building.get(template.id)
        if build is not None:
            build.scope.cancel()
            await build.ended.wait()
            template = await self.get(project_id, template.id)
        async with self._events.change() as ledger:
            users = await sandbox_store.made_from(ledger.transaction, template.id)
            if users:
                raise InUse(
                    f"{template.name} is in use by {counted(len(users), 'sandbox', 'sandboxes')}",
                    hint="delete them first: sandkeep list",
                    sandboxes=users[:20],
                )
            await store.save(ledger.transaction, replace(template, phase=TemplatePhase.DELETING))
        await self.finish_delete(template)

    async def finish_delete(self, template: Template) -> None:
        await self._runner.delete_template(OperationRef(new_id(IdKind.OPERATION), 0), template.id)
        async with self._events.change() as ledger:
            await store.remove(ledger.transaction, template.id)
            await ledger.tell(EventKind.TEMPLATE_DELETED, template.project_id, template.id, name=template.name)

    async def reconcile(self, default_project: str, *, paired: bool, adding: bool) -> None:
        """Builds that a crash interrupted fail, deletions are finished (`paired`: the node is ours), and templates that
        the node alone knows (setup makes `base` there) come under our control (`adding`)."""
        async with self._events.change() as ledger:
            known = {template.id: template for template in await store.everywhere(ledger.transaction)}
        on_node = {template.id: template for template in await self._runner.templates()}
        for template in known.values():
            if not paired:
                continue
            if template.phase is TemplatePhase.BUILDING and template.id not in self._building:
                await self._fail(template, "the server stopped during the build")
            elif template.phase is TemplatePhase.DELETING:
                await self.finish_delete(template)
        for found in on_node.values():
            if found.id in known or not adding:
                continue
            template = Template(
                found.id, default_project, found.name, TemplatePhase.READY, found.created_at, found.size, found.parent
            )
            async with self._events.change() as ledger:
                if await store.get(ledger.transaction, default_project, found.name) is None:
                    await store.add(ledger.transaction, template)
                    await ledger.tell(EventKind.TEMPLATE_READY, default_project, found.id, name=found.name)
