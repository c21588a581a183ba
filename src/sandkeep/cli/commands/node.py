"""sandkeep node"""

import click

from sandkeep.cli.output import age, size, table
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session


@click.group()
def node() -> None:
    """Show the node; adopt what it alone knows; look after what lies there in quarantine.

    \b
    Examples:
      sandkeep node show
      sandkeep node adopt --plan
    """


@node.command("list")
@pass_session
def list_(session: Session) -> None:
    """List the nodes, and whether they are of this installation.

    \b
    Example:
      sandkeep node list
    """
    view = session.client().node()
    state = "paired" if view.paired else "apart"
    row = [view.node_id, state, view.version, str(view.sandboxes), str(view.unknown), str(view.quarantined)]
    heads = ("NODE", "STATE", "VERSION", "SANDBOXES", "UNKNOWN", "QUARANTINED")
    session.say(table(heads, [row]), [view])
    if not view.paired:
        session.note(f"{view.reason}\nhint: sandkeep node adopt --plan")


@node.command()
@pass_session
def show(session: Session) -> None:
    """Show the node, its capacity, and what it knows that the server does not.

    \b
    Example:
      sandkeep node show
    """
    view = session.client().node()
    has = view.capacity
    metadata = has.pool_metadata_free
    free_memory = max(0, has.memory_limit - has.memory_promised)
    lines = [
        ("node", view.node_id),
        ("state", "paired" if view.paired else f"apart: {view.reason}"),
        ("version", view.version),
        ("memory", f"{size(has.memory_available)} of {size(has.memory_total)} free, {size(free_memory)} to promise"),
        ("pool", f"{size(has.pool_free)} of {size(has.pool_total)} free ({view.disk_driver})"),
        *([] if metadata is None else [("metadata", f"{size(metadata)} free in the pool")]),
        ("addresses", f"{has.slots_free} of {has.slots_total} free"),
        ("processes", f"{has.processes_free} free"),
        ("records", f"{size(has.data_free)} free" + ("" if has.files_free is None else f", {has.files_free} inodes")),
        ("sandboxes", str(view.sandboxes)),
        ("unknown", f"{view.unknown} (sandkeep node adopt --plan)" if view.unknown else "0"),
        ("quarantined", f"{view.quarantined} (sandkeep node quarantine list)" if view.quarantined else "0"),
    ]
    session.say("\n".join(f"{name + ':':<13}{printable(text)}" for name, text in lines), view)


@node.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that nothing holds back, and pair server and node.")
@click.option("--plan", is_flag=True, help="Only show what there is to adopt.")
@click.option("--rename", metavar="NAME", help="The name of the one that is adopted.")
@pass_session
def adopt(session: Session, ids: tuple[str, ...], every: bool, plan: bool, rename: str | None) -> None:
    """Take over sandboxes that the node alone knows: after the database was lost, or restored from an older copy.

    Nothing on the node changes. Each comes with its name (unless that is taken), labels, limits and phase, and its
    lifetime counts from now.

    \b
    Examples:
      sandkeep node adopt --plan
      sandkeep node adopt --all
      sandkeep node adopt sbx_3f9a... --rename dev2
    """
    if plan + every + bool(ids) != 1:
        raise click.UsageError("say --plan, --all, or the ids of sandboxes")
    if rename is not None and len(ids) != 1:
        raise click.UsageError("--rename goes with the id of one sandbox")
    adoption = session.client().adoption
    names = {ids[0]: rename} if rename else None
    found = list(adoption.plan() if plan else adoption.adopt(list(ids) or None, names=names))
    rows = [[v.id, v.name or "-", v.phase, v.runtime, v.persistence, v.template] for v in found]
    lines = [table(("ID", "NAME", "PHASE", "RUNTIME", "PERSISTENCE", "TEMPLATE"), rows)] if found else []
    lines += [f"{view.id}: {printable(note)}" for view in found for note in view.notes]
    lines += [f"{view.id}: held back: {printable(view.held)}" for view in found if view.held and plan]
    lines.append(f"{len(found)} to adopt" if plan else f"{len(found)} adopted")
    session.say("\n".join(lines), found)


@node.group()
def quarantine() -> None:
    """Disks and memory images that no record of the node names: kept until you say otherwise.

    \b
    Example:
      sandkeep node quarantine list
    """


@quarantine.command("list")
@pass_session
def quarantine_list(session: Session) -> None:
    """List them, with what is known.

    \b
    Example:
      sandkeep node quarantine list
    """
    found = list(session.client().quarantine.list())
    rows = [
        [v.id, v.what, size(v.size), age(v.changed_at), v.template or "-", v.owner or "-", str(len(v.generations))]
        for v in found
    ]
    session.say(table(("ID", "WHAT", "SIZE", "AGE", "TEMPLATE", "OWNER", "MEMORY IMAGES"), rows), found)


@quarantine.command("restore")
@click.argument("quarantined_id", metavar="ID")
@click.option("--name", metavar="N", help="Its name, where the server does not know it any more.")
@click.option("--runtime", metavar="R", help="Where it will run (default: gvisor), in the same case.")
@pass_session
def quarantine_restore(session: Session, quarantined_id: str, name: str | None, runtime: str | None) -> None:
    """Make a stopped sandbox of a disk.

    \b
    Example:
      sandkeep node quarantine restore sbx_3f9a... --name dev
    """
    view = session.client().quarantine.restore(quarantined_id, name=name, runtime=runtime)
    session.say(f"{view.name or view.id} is {view.phase}", view)


@quarantine.command("delete")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@pass_session
def quarantine_delete(session: Session, ids: tuple[str, ...]) -> None:
    """Remove them for good.

    \b
    Example:
      sandkeep node quarantine delete sbx_3f9a...
    """
    for quarantined_id in ids:
        session.client().quarantine.delete(quarantined_id)
    session.say("\n".join(f"{one} is deleted" for one in ids), {"deleted": list(ids)})
