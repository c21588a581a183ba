"""Things done side by side: a task group whose failure is the first error itself, not a group of errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


def first_cause(error: BaseException) -> BaseException:
    """The first error inside nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def together() -> AsyncIterator[TaskGroup]:
    """`async with together() as side: side.start_soon(...)`. The first failure cancels the rest and is raised as it is."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
