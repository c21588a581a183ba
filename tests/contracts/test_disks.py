"""What contracts.disks promises, asked of every driver: btrfs on a loop device (root), plain folders, and the fake."""

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

from sandkeep.domain.browse import ChangeKind
from sandkeep.domain.errors import Conflict, InvalidArgument, NoCapacity, NotFound
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.engine.difference import Comparison
from support.disks import HOLES, MB, TEMPLATE_BYTES, Bench, bench, fill, fill_root

pytestmark = pytest.mark.anyio

EVERY = [pytest.param("btrfs", marks=pytest.mark.requires("btrfs")), "dir", "fake"]
LIMITING = EVERY[:1]
"""Those whose capabilities say hard_limit; test_capabilities keeps this list honest."""

TREE_ROOT = 8 << 10
"""What btrfs charges for each clone itself, without asking whether the limit allows it."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=EVERY)
async def on(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=LIMITING)
async def limiting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(request.param, tmp_path) as made:
        yield made


async def test_capabilities(on: Bench) -> None:
    assert on.disks.capabilities.kind == on.kind
    assert on.disks.capabilities.hard_limit == (on.kind == "btrfs")
    assert on.disks.capabilities.notes


async def test_open_twice_and_by_a_restarted_daemon(on: Bench) -> None:
    sandbox = await on.sandbox()
    await on.disks.open()
    again = on.again()
    await again.open()
    assert (await again.contents()).disks == {sandbox: sandbox}
    assert again.path(sandbox) == on.disks.path(sandbox)


async def test_a_template_is_complete_only_when_finished(on: Bench) -> None:
    template = new_id(IdKind.TEMPLATE)
    folder = await on.disks.begin_template(template)
    fill_root(folder)
    assert (await on.disks.contents()).templates == frozenset()
    with pytest.raises(NotFound):
        await on.disks.create(new_id(IdKind.SANDBOX), template, 100 * MB)
    assert await on.disks.finish_template(template) >= TEMPLATE_BYTES
    assert (await on.disks.contents()).templates == {template}
    assert await on.disks.finish_template(template) >= TEMPLATE_BYTES, "finishing twice is one finish"
    assert (await on.disks.begin_template(template) / "etc/hostname").exists(), "a finished template stays as it is"


async def test_beginning_again_gives_an_empty_folder(on: Bench) -> None:
    template = new_id(IdKind.TEMPLATE)
    (await on.disks.begin_template(template) / "left").write_text("by a failed build")
    assert list((await on.disks.begin_template(template)).iterdir()) == []


async def test_a_disk_has_what_the_template_has(on: Bench) -> None:
    root = on.disks.path(await on.sandbox())
    assert (root / "etc/hostname").read_text() == "template\n"
    assert (root / "etc/link").readlink() == Path("/etc/passwd")
    assert (root / "holes").stat().st_size == HOLES
    if on.kind != "fake":
        found = (root / "etc/hostname").stat()
        assert (found.st_uid, found.st_nlink) == (1000, 2)
        assert os.getxattr(root / "etc/hostname", "user.note") == b"kept"
        assert (root / "holes").stat().st_blocks < 1000
        assert (root / "pipe").is_fifo()


async def test_two_sandboxes_and_their_template_are_independent(on: Bench) -> None:
    template = await on.template()
    one, two = await on.sandbox(template_id=template), await on.sandbox(template_id=template)
    (on.disks.path(one) / "etc/hostname").write_text("one")
    assert (on.disks.path(two) / "etc/hostname").read_text() == "template\n"
    three = await on.sandbox(template_id=template)
    assert (on.disks.path(three) / "etc/hostname").read_text() == "template\n"
    await on.disks.delete_template(template)
    await on.disks.delete_template(template)
    assert (on.disks.path(two) / "bytes").stat().st_size == TEMPLATE_BYTES, "clones do not need their template"


async def test_making_and_deleting_twice_is_once(on: Bench) -> None:
    sandbox, generation, template = await on.sandbox(), new_id(IdKind.GENERATION), await on.template()
    (on.disks.path(sandbox) / "mine").write_text("kept")
    assert await on.disks.create(sandbox, template, 5 * MB) == on.disks.path(sandbox)
    assert (on.disks.path(sandbox) / "mine").read_text() == "kept"
    await on.disks.snapshot(sandbox, generation)
    (on.disks.path(sandbox) / "mine").write_text("later")
    await on.disks.snapshot(sandbox, generation)
    await on.disks.restore(sandbox, generation)
    assert (on.disks.path(sandbox) / "mine").read_text() == "kept", "the second snapshot changed nothing"
    await on.disks.restore(sandbox, generation)
    for _ in range(2):
        await on.disks.drop_generation(sandbox, generation)
    for _ in range(2):
        await on.disks.delete(sandbox)
    await on.disks.drop_generation(sandbox, generation)
    assert not on.disks.path(sandbox).exists()
    assert (await on.disks.contents()).disks == {}


async def test_restore_brings_back_the_moment_under_the_same_path(on: Bench) -> None:
    sandbox, generation = await on.sandbox(), new_id(IdKind.GENERATION)
    root = on.disks.path(sandbox)
    (root / "state").write_text("then")
    await on.disks.snapshot(sandbox, generation)
    (root / "state").write_text("now")
    (root / "new").write_text("made later")
    for _ in range(3):
        await on.disks.check_generation(sandbox, generation)
        assert await on.disks.restore(sandbox, generation) == root
        assert (root / "state").read_text() == "then"
        assert not (root / "new").exists()
        (root / "state").write_text("written to the clone")
    await on.disks.drop_generation(sandbox, generation)
    assert (root / "state").read_text() == "written to the clone"
    with pytest.raises(NotFound):
        await on.disks.restore(sandbox, generation)


async def test_templates_from_a_disk_and_from_a_generation(on: Bench) -> None:
    sandbox, generation = await on.sandbox(), new_id(IdKind.GENERATION)
    (on.disks.path(sandbox) / "state").write_text("then")
    await on.disks.snapshot(sandbox, generation)
    (on.disks.path(sandbox) / "state").write_text("now")
    now, then = new_id(IdKind.TEMPLATE), new_id(IdKind.TEMPLATE)
    for _ in range(2):
        assert await on.disks.template_from_disk(now, sandbox) >= TEMPLATE_BYTES
        assert await on.disks.template_from_disk(then, sandbox, generation) >= TEMPLATE_BYTES
    await on.disks.delete(sandbox)
    forks = [await on.sandbox(template_id=template) for template in (now, then)]
    assert [(on.disks.path(fork) / "state").read_text() for fork in forks] == ["now", "then"]


async def test_a_fork_goes_on_from_the_moment_without_its_source(on: Bench) -> None:
    source, generation, fork = await on.sandbox(), new_id(IdKind.GENERATION), new_id(IdKind.SANDBOX)
    (on.disks.path(source) / "state").write_text("then")
    await on.disks.snapshot(source, generation)
    (on.disks.path(source) / "state").write_text("now")
    for _ in range(2):
        assert await on.disks.fork(fork, source, generation, 64 * MB) == on.disks.path(fork)
    assert (on.disks.path(fork) / "state").read_text() == "then"
    (on.disks.path(fork) / "state").write_text("of the fork")
    assert (on.disks.path(source) / "state").read_text() == "now"
    assert (await on.disks.facts(fork)).template == (await on.disks.facts(source)).template
    await on.disks.delete(source)
    assert (on.disks.path(fork) / "state").read_text() == "of the fork"
    assert (await on.disks.contents()).disks == {fork: fork}


async def test_memory_lives_and_goes_with_its_generation(on: Bench) -> None:
    sandbox, before, after = await on.sandbox(), new_id(IdKind.GENERATION), new_id(IdKind.GENERATION)
    memory = await on.disks.make_memory_folder(sandbox, before)
    (memory / "pages").write_bytes(b"x" * MB)
    assert memory == on.disks.memory_folder(sandbox, before) == await on.disks.make_memory_folder(sandbox, before)
    assert not memory.is_relative_to(on.disks.path(sandbox))
    assert memory.stat().st_mode & 0o777 == 0o700
    await on.disks.snapshot(sandbox, before)
    assert (memory / "pages").exists(), "a snapshot finds the folder made"
    await on.disks.snapshot(sandbox, after)
    assert on.disks.memory_folder(sandbox, after).is_dir()
    await on.disks.drop_generation(sandbox, before)
    assert not memory.exists()
    await on.disks.delete(sandbox)
    assert not on.disks.memory_folder(sandbox, after).exists()


async def test_contents_tell_the_truth(on: Bench) -> None:
    template = await on.template()
    one, two = await on.sandbox(template_id=template), await on.sandbox(template_id=template)
    generations = [new_id(IdKind.GENERATION) for _ in range(3)]
    for generation in generations[:2]:
        await on.disks.snapshot(one, generation)
    await on.disks.snapshot(two, generations[2])
    found = await on.disks.contents()
    assert found.templates == {template}
    assert found.disks == {one: one, two: two}
    assert found.generations == {generations[0]: one, generations[1]: one, generations[2]: two}
    assert found.strangers == ()
    await on.disks.delete(one)
    found = await on.disks.contents()
    assert (found.disks, found.generations) == ({two: two}, {generations[2]: two})


async def test_strangers_are_told_and_left_alone(on: Bench) -> None:
    await on.sandbox()
    stranger = on.work / "pool/templates/somebody-s.tar"
    stranger.write_text("not ours")
    assert (await on.disks.contents()).strangers == ("templates/somebody-s.tar",)
    assert await on.disks.discard_partial() == []
    assert stranger.exists()


async def test_partials_are_not_contents_and_are_discarded(on: Bench) -> None:
    sandbox, whole, half = await on.sandbox(), new_id(IdKind.GENERATION), new_id(IdKind.GENERATION)
    await on.disks.snapshot(sandbox, whole)
    before = await on.disks.contents()
    unsealed = await on.disks.begin_template(new_id(IdKind.TEMPLATE))
    (unsealed / "half").write_text("a build that died")
    memory = await on.disks.make_memory_folder(sandbox, half)
    (memory / "pages").write_text("a pause that died")
    again = on.again()
    await again.open()
    assert await again.contents() == before
    assert len(await again.discard_partial()) == 2
    assert not unsealed.exists()
    assert not memory.exists()
    assert await again.contents() == before
    assert await again.discard_partial() == []


async def test_unknown_sources_are_not_found(on: Bench) -> None:
    sandbox, nobody = await on.sandbox(), new_id(IdKind.SANDBOX)
    template, generation = new_id(IdKind.TEMPLATE), new_id(IdKind.GENERATION)
    for call in (
        on.disks.create(nobody, template, MB),
        on.disks.finish_template(template),
        on.disks.template_from_disk(template, nobody),
        on.disks.template_from_disk(template, sandbox, generation),
        on.disks.snapshot(nobody, generation),
        on.disks.restore(sandbox, generation),
        on.disks.check_generation(sandbox, generation),
        on.disks.fork(nobody, sandbox, generation, MB),
        on.disks.fork(nobody, new_id(IdKind.SANDBOX), generation, MB),
        on.disks.make_memory_folder(nobody, generation),
        on.disks.set_limit(nobody, MB),
        on.disks.used(nobody),
    ):
        with pytest.raises(NotFound):
            await call
    found = await on.disks.contents()
    assert list(found.disks) == [sandbox]
    assert not found.generations


@pytest.mark.parametrize("name", ["../../etc", "sbx_short", "", "sbx_" + "A" * 20, f"tpl_{'a' * 20}/..", "a\nb"])
async def test_only_ids_become_paths(on: Bench, name: str) -> None:
    sandbox = await on.sandbox()
    with pytest.raises(InvalidArgument):
        on.disks.path(name)
    with pytest.raises(InvalidArgument):
        on.disks.memory_folder(sandbox, name)
    for call in (on.disks.begin_template(name), on.disks.delete(name), on.disks.drop_generation(sandbox, name)):
        with pytest.raises(InvalidArgument):
            await call


async def test_space_and_use_are_counted(on: Bench) -> None:
    sandbox = await on.sandbox()
    before, space = await on.disks.used(sandbox), await on.disks.space()
    assert 0 < space.free <= space.total
    fill(on.disks.path(sandbox) / "more", 4 * MB)
    await on.disks.sync()
    assert 4 * MB <= await on.disks.used(sandbox) - before < 5 * MB
    await on.disks.snapshot(sandbox, new_id(IdKind.GENERATION))
    (on.disks.path(sandbox) / "more").unlink()
    await on.disks.sync()
    assert await on.disks.used(sandbox) - before >= 4 * MB, "what a generation keeps is charged"


def tick(on: Bench) -> None:
    """Until the kernel's clock for files goes on: what is done after this is not of the same instant as what was before."""
    probe = on.work / "clock"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.touch()


async def test_what_changed_is_never_taken_for_unchanged(on: Bench) -> None:
    template = await on.template()
    sandbox = await on.sandbox(template_id=template)
    root = on.disks.path(sandbox)
    (root / "state").write_text("then")
    changes: list[Callable[[], object]] = [
        lambda: (root / "state").write_text("else"),
        lambda: (root / "more").touch(),
        lambda: (root / "state").chmod(0o600),
        lambda: (root / "state").rename(root / "moved"),
        lambda: (root / "etc/new").mkdir(),
        lambda: (root / "etc/to").symlink_to("/nowhere"),
        lambda: (root / "moved").unlink(),
    ]
    for change in changes:
        tick(on)
        generation = new_id(IdKind.GENERATION)
        await on.disks.snapshot(sandbox, generation)
        assert not await on.disks.changed(sandbox, generation)
        other = await on.sandbox(template_id=template)
        (on.disks.path(other) / "elsewhere").write_text("in another sandbox")
        (root / "etc/hostname").read_text()
        assert not await on.disks.changed(sandbox, generation)
        change()
        assert await on.disks.changed(sandbox, generation)
        await on.disks.sync()
        assert await on.disks.changed(sandbox, generation)
    with pytest.raises(NotFound):
        await on.disks.changed(sandbox, new_id(IdKind.GENERATION))


async def test_what_changed_through_a_pause_is_seen(on: Bench) -> None:
    """The disk goes on from a clone of a generation that is dropped then."""
    sandbox, kept, pause = await on.sandbox(), new_id(IdKind.GENERATION), new_id(IdKind.GENERATION)
    await on.disks.snapshot(sandbox, kept)
    (on.disks.path(sandbox) / "between").write_text("x")
    await on.disks.snapshot(sandbox, pause)
    await on.disks.restore(sandbox, pause)
    await on.disks.drop_generation(sandbox, pause)
    assert await on.disks.changed(sandbox, kept)
    if on.kind != "dir":  # whose copies are all new
        await on.disks.restore(sandbox, kept)
        assert not await on.disks.changed(sandbox, kept)
    (on.disks.path(sandbox) / "after").write_text("x")
    assert await on.disks.changed(sandbox, kept)


async def test_sizes_of_generations(on: Bench) -> None:
    sandbox = await on.sandbox(200 * MB)
    first, second, third = (new_id(IdKind.GENERATION) for _ in range(3))
    root = on.disks.path(sandbox)
    (root / "a").write_bytes(os.urandom(4 * MB))
    await on.disks.snapshot(sandbox, first)
    (root / "b").write_bytes(os.urandom(3 * MB))
    await on.disks.snapshot(sandbox, second)
    (root / "a").unlink()
    (root / "b").unlink()
    (root / "c").write_bytes(os.urandom(2 * MB))
    await on.disks.snapshot(sandbox, third)
    found = await on.disks.measure(sandbox, [(first, None), (second, first), (third, second)])
    assert found.sizes.keys() == {first, second, third}
    if on.kind == "dir":
        assert all(size.freed and size.freed >= TEMPLATE_BYTES for size in found.sizes.values())
        assert found.shares == tuple((g, g, found.sizes[g].freed) for g in (first, second, third))
        return
    sizes = [(found.sizes[g].written, found.sizes[g].freed) for g in (first, second, third)]
    assert sizes == [(4 * MB, 0), (3 * MB, 3 * MB), (2 * MB, 0)]
    assert set(found.shares) == {(first, second, 4 * MB), (second, second, 3 * MB)}
    (root / "c").unlink()
    await on.disks.drop_generation(sandbox, first)
    with pytest.raises(NotFound):
        await on.disks.measure(sandbox, [(first, None)])
    free = (await on.disks.space()).free
    found = await on.disks.measure(sandbox, [(second, None), (third, second)])
    assert [(found.sizes[g].written, found.sizes[g].freed) for g in (second, third)] == [
        (7 * MB, 7 * MB),
        (2 * MB, 2 * MB),
    ]
    await on.disks.drop_generation(sandbox, second)
    if on.kind == "btrfs":
        with anyio.fail_after(30):
            while (await on.disks.space()).free - free < 7 * MB:
                await on.disks.sync()
                await anyio.sleep(0.05)


async def test_a_full_pool_makes_nothing_new_and_still_deletes(on: Bench) -> None:
    template = await on.template()
    sandbox, other = await on.sandbox(template_id=template), await on.sandbox(template_id=template)
    generation = new_id(IdKind.GENERATION)
    await on.disks.snapshot(other, generation)
    await on.exhaust(sandbox)
    before = await on.disks.contents()
    for call in (
        on.disks.create(new_id(IdKind.SANDBOX), template, MB),
        on.disks.snapshot(sandbox, new_id(IdKind.GENERATION)),
        on.disks.template_from_disk(new_id(IdKind.TEMPLATE), sandbox),
        on.disks.begin_template(new_id(IdKind.TEMPLATE)),
    ):
        with pytest.raises(NoCapacity) as raised:
            await call
        assert "pool_free" in raised.value.details
    assert await on.disks.contents() == before
    assert await on.disks.discard_partial() == []
    await on.disks.restore(other, generation)
    await on.disks.drop_generation(other, generation)
    for each in (sandbox, other):
        await on.disks.delete(each)
    assert (await on.disks.contents()).disks == {}


# with a hard limit


async def test_a_clone_starts_at_nothing(limiting: Bench) -> None:
    sandbox = await limiting.sandbox()
    await limiting.disks.sync()
    assert await limiting.disks.used(sandbox) <= 64 << 10


async def test_templates_and_generations_are_read_only(limiting: Bench) -> None:
    sandbox, generation, template = await limiting.sandbox(), new_id(IdKind.GENERATION), await limiting.template()
    await limiting.disks.snapshot(sandbox, generation)
    sealed = await limiting.disks.begin_template(template)
    kept = limiting.disks.memory_folder(sandbox, generation).with_name("disk")
    for root in (sealed, kept):
        assert fill(root / "etc/new", MB) == (0, errno.EROFS)


@pytest.mark.parametrize("keep", [True, False], ids=["generations-kept", "dropped-as-by-resume"])
async def test_ten_pause_and_resume_cycles_never_exceed_the_limit(limiting: Bench, keep: bool) -> None:
    limit, disks = 30 * MB, limiting.disks
    sandbox = await limiting.sandbox(limit)
    await disks.sync()
    free, written, stopped, last = (await disks.space()).free, 0, 0, None
    for cycle in range(10):
        done, number = fill(disks.path(sandbox) / f"cycle-{cycle}", 8 * MB)
        written, stopped = written + done, stopped or number
        generation = new_id(IdKind.GENERATION)
        await disks.snapshot(sandbox, generation)
        await disks.restore(sandbox, generation)
        if last and not keep:
            await disks.drop_generation(sandbox, last)
        last = generation
        await disks.sync()
        trees = (cycle + 2 if keep else 3) * TREE_ROOT
        assert await disks.used(sandbox) <= limit + trees
    assert stopped == errno.EDQUOT
    assert 24 * MB <= written <= limit
    assert free - (await disks.space()).free <= limit + 8 * MB, "what the pool lost: with metadata twice"


async def test_at_its_limit_a_disk_is_still_kept_restored_and_deleted(limiting: Bench) -> None:
    disks, generation = limiting.disks, new_id(IdKind.GENERATION)
    sandbox = await limiting.sandbox(10 * MB)
    assert fill(disks.path(sandbox) / "all", 20 * MB)[1] == errno.EDQUOT
    await disks.snapshot(sandbox, generation)
    await disks.restore(sandbox, generation)
    assert fill(disks.path(sandbox) / "all", 5 * MB)[1] == errno.EDQUOT
    template = new_id(IdKind.TEMPLATE)
    await disks.template_from_disk(template, sandbox)
    await limiting.sandbox(template_id=template)
    await disks.set_limit(sandbox, 20 * MB)
    assert fill(disks.path(sandbox) / "more", 5 * MB) == (5 * MB, 0)
    await disks.set_limit(sandbox, 5 * MB)
    await disks.delete(sandbox)
    assert sandbox not in (await disks.contents()).disks


async def test_the_limits_of_two_sandboxes_are_their_own(limiting: Bench) -> None:
    template = await limiting.template()
    one, two = [await limiting.sandbox(10 * MB, template) for _ in range(2)]
    assert fill(limiting.disks.path(one) / "all", 20 * MB)[1] == errno.EDQUOT
    assert fill(limiting.disks.path(two) / "some", 8 * MB) == (8 * MB, 0)
    await limiting.disks.delete(one)
    await limiting.disks.sync()
    assert 8 * MB <= await limiting.disks.used(two) <= 10 * MB


async def test_the_pool_knows_of_a_disk_what_its_record_would_tell(on: Bench) -> None:
    template = await on.template()
    sandbox = new_id(IdKind.SANDBOX)
    await on.disks.create(sandbox, template, 64 * MB)
    before = await on.disks.facts(sandbox)
    await on.disks.set_limit(sandbox, 128 * MB)
    after = await on.disks.facts(sandbox)
    assert before.changed_at > 0
    if on.kind != "dir":  # it has no limits, and not every file system keeps its notes
        assert (before.template, before.limit, after.limit) == (template, 64 * MB, 128 * MB)
    with pytest.raises(NotFound):
        await on.disks.facts(new_id(IdKind.SANDBOX))


# what differs


async def kept(on: Bench, sandbox: str) -> str:
    generation = new_id(IdKind.GENERATION)
    await on.disks.snapshot(sandbox, generation)
    return generation


async def test_inodes_since_a_mark_are_told_or_cannot_be(on: Bench) -> None:
    """Whatever became of them; through clones of that very moment, and of no other."""
    sandbox, before, aside = await on.sandbox(), new_id(IdKind.GENERATION), new_id(IdKind.GENERATION)
    root = on.disks.path(sandbox)
    names = ("still", "written", "mode", "noted", "renamed", "linked", "gone", "cut")
    for name in (*names, "folder/moved-with-it"):
        (root / "folder").mkdir(exist_ok=True)
        (root / name).write_text(f"of {name}")
    await on.disks.snapshot(sandbox, before)
    mark = new_id(IdKind.GENERATION)
    moment = await on.disks.mark(sandbox, mark)
    if on.kind != "btrfs":
        assert moment is None
        assert await on.disks.inodes_since(sandbox, mark, 1) is None
        return
    assert moment is not None
    inodes = {name: (root / name).stat().st_ino for name in names}
    below = (root / "folder/moved-with-it").stat().st_ino
    assert await on.disks.inodes_since(sandbox, mark, moment) == frozenset()
    (root / "written").write_text("of another")
    (root / "mode").chmod(0o600)
    os.setxattr(root / "noted", "user.note", b"more")
    (root / "renamed").rename(root / "elsewhere")
    os.link(root / "linked", root / "again")
    (root / "gone").unlink()
    os.truncate(root / "cut", 3)
    (root / "folder").rename(root / "other-folder")
    (root / "fresh").touch()
    for _ in range(2):
        found = await on.again().inodes_since(sandbox, mark, moment)
        assert found is not None
        changed = {inodes[name] for name in names if name not in ("still", "gone")}
        assert changed | {(root / "fresh").stat().st_ino} <= found
        assert not {inodes["still"], below} & found
        await on.disks.snapshot(sandbox, aside)
        await on.disks.restore(sandbox, aside)
    assert await on.disks.inodes_since(sandbox, new_id(IdKind.GENERATION), moment) is None
    await on.disks.restore(sandbox, before)
    assert await on.disks.inodes_since(sandbox, mark, moment) is None, "it is older than the mark"
    with pytest.raises(NotFound):
        await on.disks.inodes_since(new_id(IdKind.SANDBOX), mark, moment)
    with pytest.raises(NotFound):
        await on.disks.mark(new_id(IdKind.SANDBOX), mark)


async def test_what_was_touched_is_told_or_cannot_be(on: Bench) -> None:
    """A driver that tells names every path that differs, of a sandbox's own moments and of those of a fork."""
    source, fork = await on.sandbox(), new_id(IdKind.SANDBOX)
    for number in range(300):
        (on.disks.path(source) / f"still-{number}").write_text("as it was")
    before = await kept(on, source)
    await on.disks.fork(fork, source, before, 64 * MB)
    for sandbox in (source, fork):
        root = on.disks.path(sandbox)
        (root / "etc/hostname").write_text("another")
        (root / "still-7").chmod(0o600)
        (root / "still-8").unlink()
        (root / "etc").rename(root / "moved")
    after, forked = await kept(on, source), await kept(on, fork)
    (on.disks.path(source) / "later").write_text("")
    for one, other in (
        ((source, before), (source, after)),
        ((source, after), (source, before)),
        ((source, before), (fork, forked)),
    ):
        found = await on.disks.touched(one, other)
        if on.kind != "btrfs":
            assert found is None
            continue
        assert found is not None
        assert {b"etc", b"moved"} <= found.moved
        assert {b"still-7", b"still-8"} <= found.paths
        assert len([path for path in found.paths if path.startswith(b"still-")]) == 2
    nothing = await on.disks.touched((source, before), (source, before))
    assert nothing is None or nothing.paths == frozenset()
    assert (on.disks.generation_path(fork, forked) / "moved").is_dir()
    for gone in ((source, new_id(IdKind.GENERATION)), (new_id(IdKind.SANDBOX), before)):
        with pytest.raises(NotFound):
            await on.disks.touched((source, before), gone)
        with pytest.raises(NotFound):
            await on.disks.touched(gone, (source, before))


async def test_a_path_that_is_too_long_for_the_file_system_keeps_no_comparison_back(on: Bench) -> None:
    """Any guest can make one; then nothing is told, and both trees are walked."""
    if on.kind != "btrfs":
        pytest.skip("it copies by whole paths")
    source = await on.sandbox()
    before = await kept(on, source)
    folder = os.open(on.disks.path(source), os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=folder)
        folder, above = os.open("d" * 100, os.O_RDONLY, dir_fd=folder), folder
        os.close(above)
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    (on.disks.path(source) / "beside").write_text("new")
    after = await kept(on, source)
    assert await on.disks.touched((source, before), (source, after)) is None
    seen: list[bytes] = []
    roots = on.disks.generation_path(source, before), on.disks.generation_path(source, after)
    found = Comparison(*roots, 1000, lambda: None, seen.append)
    found.run(None)
    assert found.counts[ChangeKind.ADDED] == 62
    assert (b"beside" in seen, max(map(len, seen)) > 4096) == (True, True)


async def test_a_comparison_never_keeps_what_is_dropped(on: Bench) -> None:
    """Drops come while two moments are compared: they succeed, and the comparison ends by itself."""
    sandbox = await on.sandbox()
    before = await kept(on, sandbox)
    many = on.disks.path(sandbox) / "many"
    many.mkdir()
    for number in range(1000):
        (many / f"{number}-{'x' * 200}").touch()
    ended: list[str] = []

    async def compare(generation: str) -> None:
        try:
            await on.disks.touched((sandbox, before), (sandbox, generation))
            ended.append("done")
        except NotFound:
            ended.append("gone")

    for number in range(5):
        generation = await kept(on, sandbox)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(compare, generation)
            await anyio.sleep(0.002 * number)
            await on.disks.drop_generation(sandbox, generation)
        assert generation not in (await on.disks.contents()).generations
    assert len(ended) == 5
    assert set(ended) <= {"done", "gone"}


# disks that are filled from elsewhere


async def test_a_disk_that_was_begun_is_one_when_it_is_finished(on: Bench) -> None:
    sandbox = new_id(IdKind.SANDBOX)
    with pytest.raises(NotFound):
        await on.disks.finish_disk(sandbox)
    (await on.disks.begin_disk(sandbox, 100 * MB) / "left").write_text("by a failed try")
    fresh = await on.disks.begin_disk(sandbox, 100 * MB)
    assert list(fresh.iterdir()) == []
    fill_root(fresh)
    assert (await on.disks.contents()).disks == {}
    disk = await on.disks.finish_disk(sandbox)
    assert disk == on.disks.path(sandbox) == await on.disks.finish_disk(sandbox)
    assert (disk / "etc/hostname").read_text() == "template\n"
    assert (await on.disks.contents()).disks == {sandbox: sandbox}
    with pytest.raises(Conflict):
        await on.disks.begin_disk(sandbox, 100 * MB)
    generation = new_id(IdKind.GENERATION)
    await on.disks.snapshot(sandbox, generation)
    await on.disks.restore(sandbox, generation)
    await on.disks.delete(sandbox)


async def test_a_half_made_disk_is_partial(on: Bench) -> None:
    sandbox = new_id(IdKind.SANDBOX)
    (await on.disks.begin_disk(sandbox, 100 * MB) / "half").write_text("x")
    assert len(await on.again().discard_partial()) == 1
    contents = await on.disks.contents()
    assert (contents.disks, contents.strangers) == ({}, ())


async def test_a_disk_that_is_dropped_leaves_its_generations(on: Bench) -> None:
    sandbox, generation = await on.sandbox(), new_id(IdKind.GENERATION)
    await on.disks.snapshot(sandbox, generation)
    for _ in range(2):
        await on.disks.drop_disk(sandbox)
        contents = await on.disks.contents()
        assert (contents.disks, contents.generations) == ({}, {generation: sandbox})
    await on.disks.discard_partial()
    assert (await on.disks.contents()).generations == {generation: sandbox}
    fill_root(await on.disks.begin_disk(sandbox, 100 * MB))
    await on.disks.finish_disk(sandbox)
    await on.disks.restore(sandbox, generation)
    await on.disks.drop_generation(sandbox, generation)
    await on.disks.drop_disk(sandbox)
    contents = await on.disks.contents()
    assert (contents.disks, contents.generations, contents.strangers) == ({}, {}, ())
    await on.disks.drop_disk(new_id(IdKind.SANDBOX))


async def test_a_begun_disk_has_its_limit(limiting: Bench) -> None:
    sandbox = new_id(IdKind.SANDBOX)
    fresh = await limiting.disks.begin_disk(sandbox, 10 * MB)
    assert fill(fresh / "much", 50 * MB)[1] == errno.EDQUOT
    await limiting.disks.drop_disk(sandbox)


async def test_a_generation_that_was_begun_is_one_when_it_is_finished(on: Bench) -> None:
    """Beside a disk, and without any."""
    for sandbox in (await on.sandbox(), new_id(IdKind.SANDBOX)):
        generation = new_id(IdKind.GENERATION)
        with pytest.raises(NotFound):
            await on.disks.finish_generation(sandbox, generation)
        (await on.disks.begin_generation(sandbox, generation, 100 * MB) / "left").write_text("by a failed try")
        fresh = await on.disks.begin_generation(sandbox, generation, 100 * MB)
        assert list(fresh.iterdir()) == []
        (fresh / "kept").write_text("a moment")
        (on.disks.memory_folder(sandbox, generation) / "pages").write_text("memory")
        assert (await on.disks.contents()).generations == {}
        for _ in range(2):
            await on.disks.finish_generation(sandbox, generation)
        assert (await on.disks.contents()).generations == {generation: sandbox}
        assert (on.disks.memory_folder(sandbox, generation) / "pages").read_text() == "memory"
        with pytest.raises(Conflict):
            await on.disks.begin_generation(sandbox, generation, 100 * MB)
        disk = await on.disks.restore(sandbox, generation)
        assert (disk / "kept").read_text() == "a moment"
        await on.disks.delete(sandbox)
        assert (await on.disks.contents()).generations == {}


async def test_a_half_made_generation_is_partial(on: Bench) -> None:
    sandbox = await on.sandbox()
    for _ in range(2):
        generation = new_id(IdKind.GENERATION)
        (await on.disks.begin_generation(sandbox, generation, 100 * MB) / "half").write_text("x")
    await on.disks.drop_generation(sandbox, generation)
    await on.again().discard_partial()
    contents = await on.disks.contents()
    assert (contents.disks, contents.generations, contents.strangers) == ({sandbox: sandbox}, {}, ())


async def test_a_begun_generation_counts_against_the_limit(limiting: Bench) -> None:
    sandbox = new_id(IdKind.SANDBOX)
    fresh = await limiting.disks.begin_generation(sandbox, new_id(IdKind.GENERATION), 10 * MB)
    assert fill(fresh / "much", 50 * MB)[1] == errno.EDQUOT
    await limiting.disks.delete(sandbox)
