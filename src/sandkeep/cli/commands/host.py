"""This host: setup, up, down, demo, doctor, fsck, backup, support-bundle, purge, and the daemons' own entries.

The only commands that start programs.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import click

from sandkeep.app import entry
from sandkeep.cli.output import counted, size
from sandkeep.cli.session import Session, pass_session


def _settings(session: Session, **flags: Any) -> Any:
    return entry.load(session.instance, **flags)


@click.command()
@click.option(
    "--pool-size", metavar="S", help="Size of the pool file, like 100GiB; a larger one grows an existing pool."
)
@click.option("--pool-device", metavar="DEV", help="A block device for the pool, instead of a file.")
@click.option("--address-range", metavar="CIDR", help="Addresses of the sandboxes on the host's side.")
@click.option("--port", type=int, help="Port of the server.")
@click.option("--disk-driver", type=click.Choice(["auto", "btrfs", "dir"]), help="Where disks live.")
@click.option("--template", "templates", multiple=True, metavar="RECIPE", help="Templates to build (default: base).")
@pass_session
def setup(session: Session, /, templates: tuple[str, ...], **flags: Any) -> None:
    """Prepare this host for an instance: packages, gVisor, user, pool, network, the base template.

    Needs root. Repeating it is quick and harmless; `sandkeep purge` takes everything back.

    \b
    Examples:
      sandkeep setup
      sandkeep setup --pool-size 200GiB
      sandkeep setup --instance second --pool-device /dev/sdb
    """
    settings = _settings(session, **flags)
    asked = {key: value for key, value in settings.model_dump(mode="json").items() if flags.get(key) is not None}
    entry.setup(settings, session.note, templates or ("base",), asked)
    session.say("", {"instance": settings.instance, "data_folder": str(settings.data_folder)})


@click.command()
@pass_session
def up(session: Session) -> None:
    """Start server and runner in the background, and write address and key into your configuration.

    \b
    Example:
      sandkeep up
    """
    settings = _settings(session)
    entry.up(settings, session.note)
    session.say("", {"instance": settings.instance, "url": settings.url})


@click.command()
@pass_session
def down(session: Session) -> None:
    """Stop server and runner. Sandboxes go on running and all data stays.

    \b
    Example:
      sandkeep down
    """
    settings = _settings(session)
    entry.down(settings, session.note)
    session.say("", {"instance": settings.instance, "stopped": True})


@click.command()
@pass_session
def demo(session: Session) -> None:
    """A sandbox with a repository, a package and a counter; pause it, resume it, and see that all went on.

    \b
    Example:
      sandkeep demo
    """
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if not session.as_json:
            click.echo(line)

    name = entry.demo(_settings(session), say)
    if session.as_json:
        session.say("", {"sandbox": name, "steps": [line.strip() for line in lines if line.strip()]})


@click.command()
@click.option("--deep", is_flag=True, help="Also test the gVisor build that is here, with a sandbox of its own.")
@pass_session
@click.pass_context
def doctor(context: click.Context, session: Session, deep: bool) -> None:
    """Say what this host can do and what it lacks, each finding with its remedy. Changes nothing.

    \b
    Examples:
      sandkeep doctor
      sandkeep doctor --json
    """
    findings = entry.doctor(_settings(session), deep)
    marks = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]}  {finding.what}")
        if finding.remedy:
            lines.append(f"         -> {finding.remedy}")
    session.say("\n".join(lines), {"findings": [dataclasses.asdict(finding) for finding in findings]})
    if any(finding.level == "missing" for finding in findings):
        context.exit(1)


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended without losing data; the plan is shown first.")
@click.option("--plan", is_flag=True, help="With --repair: only show the plan.")
@click.option("--yes", is_flag=True, help="With --repair: do not ask.")
@pass_session
@click.pass_context
def fsck(context: click.Context, session: Session, repair: bool, plan: bool, yes: bool) -> None:
    """Compare records with kernel and pool, from outside, also while the daemons are dead. Changes nothing by itself.

    Exits 1 when it finds something; with --repair, when something is left. What no record names is never removed.

    \b
    Examples:
      sandkeep fsck
      sandkeep fsck --json
      sandkeep fsck --repair --plan
      sandkeep fsck --repair --yes
    """
    if (plan or yes) and not repair:
        raise click.UsageError("--plan and --yes go with --repair")
    if repair:
        steps = entry.plan_repair(_settings(session))
        lines = [f"{step.who:<7} {step.kind}  {step.subject}  {step.what}" for step in steps]
        if plan:
            session.say("\n".join([*lines, f"{len(lines)} to mend"]), [dataclasses.asdict(step) for step in steps])
            return
        if any(step.who == "node" for step in steps):
            session.note("\n".join(lines))
            if not yes:
                if not sys.stdin.isatty():
                    raise click.UsageError("say --yes to repair without being asked")
                click.confirm("Do what the node can do?", abort=True, err=True)
            entry.repair(_settings(session))
    result = entry.fsck(_settings(session))
    lines = [f"{item['kind']}  {item['subject']}  {item['detail']}" for item in result["findings"]]
    counts = ", ".join(f"{count} {what}" for what, count in result["counts"].items())
    session.say("\n".join([*lines, f"{counted(len(lines), 'finding')} ({counts})"]), result)
    if lines:
        context.exit(1)


@click.group()
def backup() -> None:
    """Save the server's database into one file, and restore it.

    Disks and memory images are not in it.

    \b
    Example:
      sandkeep backup create sandkeep.backup
    """


@backup.command("create")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@pass_session
def create_backup(session: Session, file: Path) -> None:
    """Write one moment of the database into FILE, also while the server runs.

    \b
    Example:
      sandkeep backup create sandkeep-$(date +%F).backup
    """
    result = entry.create_backup(_settings(session), file.absolute())
    rows = sum(result["rows"].values())
    session.say(
        f"{file} has {rows} rows, {result['rows'].get('sandboxes', 0)} sandboxes ({size(result['size'])})", result
    )


@backup.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="If the daemons run, stop them for it and start them again.")
@pass_session
def restore(session: Session, file: Path, yes: bool) -> None:
    """Put FILE in the place of the database; what was there is kept beside it. Changes nothing on the node.

    \b
    Example:
      sandkeep backup restore sandkeep.backup --yes
    """
    result = entry.restore_backup(_settings(session), file.absolute(), session.note, yes)
    session.say("", result)


@click.command("support-bundle")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Default: sandkeep-support-INSTANCE-TIME.tar.gz in this folder.",
)
@pass_session
def support_bundle(session: Session, output: Path | None) -> None:
    """Collect what helps somebody else to see what is wrong: logs, events, versions, findings. Secrets are left out.

    Works also while the daemons are dead. The file is for its owner alone; look through it before you hand it on.

    \b
    Examples:
      sandkeep support-bundle
      sandkeep support-bundle -o /root/bundle.tar.gz --json
    """
    settings = _settings(session)
    target = output or Path(f"sandkeep-support-{settings.instance}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    made = entry.support_bundle(settings, target.absolute())
    lines = [f"{item['size']:>9}  {item['name']:<22}  {item['what']}" for item in made["contents"]]
    lines += [f"        -  {item['name']:<22}  {item['reason']}" for item in made["problems"]]
    session.say("\n".join([*lines, f"wrote {made['file']}"]), made)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
@click.pass_context
def purge(context: click.Context, session: Session, yes: bool) -> None:
    """Remove an instance and everything it ever made: sandboxes, data, networks, settings.

    \b
    Examples:
      sandkeep purge
      sandkeep purge --instance second --yes
    """
    settings = _settings(session)
    session.note("this removes:\n  " + "\n  ".join(entry.what_purge_removes(settings)))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("say --yes to remove all of it without being asked")
        if not click.confirm("Remove all of it?", err=True):
            session.note("nothing was removed")
            context.exit(1)
    entry.purge(settings, session.note)
    session.say("", {"instance": settings.instance, "purged": True})


@click.command(hidden=True)
@pass_session
def server(session: Session) -> None:
    """Run the control plane in the foreground."""
    entry.server(_settings(session))


@click.command(hidden=True)
@pass_session
def runner(session: Session) -> None:
    """Run the node's root daemon in the foreground."""
    entry.runner(_settings(session))
