"""Templates on the node: a disk becomes a starting point for others, and goes again. Called by the supervisor."""

from dataclasses import replace

from sandkeep.domain.errors import Conflict, InUse
from sandkeep.domain.node import OperationRef, TemplateOnNode
from sandkeep.domain.sandbox import DEADLINES, Phase
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.operations import Operations
from sandkeep.engine.parts import Parts
from sandkeep.engine.undo import Undos


class Templates:
    def __init__(self, parts: Parts, lanes: Lanes, operations: Operations) -> None:
        self._parts = parts
        self._lanes = lanes
        self._operations = operations

    async def make(self, operation: OperationRef, sandbox_id: str, template: TemplateOnNode) -> TemplateOnNode:
        async def body() -> TemplateOnNode:
            if template.id in self._parts.records.templates:
                return self._parts.records.templates[template.id]
            async with self._lanes.operate(sandbox_id, None, DEADLINES[Phase.PAUSING]):
                record = self._operations.known(sandbox_id)
                if record.phase is not Phase.STOPPED:
                    raise Conflict(f"sandbox {sandbox_id} is {record.phase}, not stopped")
                entry = self._parts.journal.begin(operation.id, "make_template", template.id, sandbox=sandbox_id)
                try:
                    async with Undos() as undos:
                        entry.step("template.copy")
                        undos.push("template", lambda: self._parts.disks.delete_template(template.id))
                        size = await self._parts.disks.template_from_disk(template.id, sandbox_id)
                        made = replace(template, size=size)
                        entry.step("record")
                        self._parts.records.save_template(made)
                finally:
                    entry.close()
                return made

        return await self._operations.detached(body)

    async def delete(self, operation: OperationRef, template_id: str) -> None:
        if template_id not in self._parts.records.templates:
            return
        records = self._parts.records.sandboxes.values()
        users = [r.id for r in records if r.spec.template == template_id and r.phase is not Phase.DELETED]
        if users:
            raise InUse(
                "this template is in use: sandboxes were made from it",
                hint="delete them first",
                sandboxes=users[:20],
            )

        async def body() -> None:
            entry = self._parts.journal.begin(operation.id, "delete_template", template_id)
            self._parts.records.remove_template(template_id)
            entry.step("template.delete")
            await self._parts.disks.delete_template(template_id)
            await self._parts.disks.sync()  # gone also after a power cut, before the intent is forgotten
            entry.close()

        await self._operations.detached(body)
