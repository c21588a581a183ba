"""The fair queue."""

import anyio
import pytest

from sandkeep.lib.turns import Turns

pytestmark = pytest.mark.anyio


async def test_one_of_each_caller_after_the_other() -> None:
    turns = Turns(1)
    served: list[str] = []

    async def work(caller: str) -> None:
        async with turns.turn(caller):
            served.append(caller)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        async with turns.turn("first"):
            for caller in ("a", "a", "a", "a", "b", "c", "b"):
                tasks.start_soon(work, caller)
            await anyio.wait_all_tasks_blocked()
    assert served == ["a", "b", "c", "a", "b", "a", "a"]
    assert turns.waiting == 0


async def test_never_more_at_once_and_all_have_a_turn() -> None:
    turns = Turns(3)
    inside, most, done = 0, 0, 0

    async def work(caller: str) -> None:
        nonlocal inside, most, done
        async with turns.turn(caller):
            inside += 1
            most = max(most, inside)
            await anyio.lowlevel.checkpoint()
            inside -= 1
            done += 1

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(work, str(number % 4))
    assert (most, done, turns.waiting) == (3, 50, 0)


@pytest.mark.parametrize("called", [False, True])
async def test_who_gives_up_takes_no_turn_away(called: bool) -> None:
    """Also when it gives up in the moment in which it is called."""
    turns = Turns(1)
    scope = anyio.CancelScope()

    async def impatient() -> None:
        with scope:
            async with turns.turn("a"):
                await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        async with turns.turn("first"):
            tasks.start_soon(impatient)
            await anyio.wait_all_tasks_blocked()
            if not called:
                scope.cancel()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            async with turns.turn("b"):
                pass
