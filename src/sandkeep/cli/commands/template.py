"""sandkeep template"""

from typing import Any

import click

from sandkeep.cli.output import age, size, table
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session


@click.group()
def template() -> None:
    """Build, list, show and delete templates: what sandboxes start from.

    \b
    Example:
      sandkeep template build web --from base --run 'apt-get install -y nginx'
    """


@template.command()
@click.argument("name")
@click.option("--from", "parent", metavar="T", help="What it starts from (default: base).")
@click.option(
    "--run", "steps", metavar="CMD", multiple=True, required=True, help="A shell line, run as root, in order."
)
@click.option("--runtime", metavar="R", help="Where the steps run (default: gvisor).")
@click.option("--memory", metavar="M", help="For the build, like 2GiB.")
@click.option("--disk", metavar="D", help="For the build, like 8GiB.")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
@pass_session
def build(session: Session, /, name: str, steps: tuple[str, ...], detach: bool, **spec: Any) -> None:
    """Build a template, step by step; its log comes as it is made. Ctrl-C cancels the build.

    \b
    Examples:
      sandkeep template build web --from base --run 'apt-get update' --run 'apt-get install -y nginx'
      sandkeep template build web2 --from web --run 'pip install flask' --detach
    """
    templates = session.client().templates
    view = templates.build(name, steps, **spec)
    if not detach:
        try:
            for line in templates.log(view.id, follow=True):
                if not session.as_json:
                    click.echo(printable(line.replace("\t", "    ")))
            view = templates.wait(view.id)
        except KeyboardInterrupt:
            session.note(f"cancelling the build of {view.name}")
            templates.delete(view.id)
            session.note(f"the build of {view.name} was cancelled, and nothing of it is left")
            raise
    state = "failed" if view.phase == "failed" else f"is {view.phase}"
    session.say(f"{view.name} {state}" + (f": {view.reason}" if view.reason else ""), view)
    if view.phase == "failed":
        click.get_current_context().exit(1)


@template.command("list")
@pass_session
def list_(session: Session) -> None:
    """List templates.

    \b
    Example:
      sandkeep template list
    """
    found = list(session.client().templates.list())
    rows = [[view.name, view.id, view.phase, size(view.size), age(view.created_at)] for view in found]
    session.say(table(("NAME", "ID", "PHASE", "SIZE", "AGE"), rows), found)


@template.command()
@click.argument("ref", metavar="NAME_OR_ID")
@click.option("--log", is_flag=True, help="What its build printed, too.")
@pass_session
def show(session: Session, ref: str, log: bool) -> None:
    """Show a template and how it was made.

    \b
    Example:
      sandkeep template show web --log
    """
    view = session.client().templates.get(ref)
    lines = [
        ("name", view.name),
        ("id", view.id),
        ("phase", f"{view.phase}: {view.reason}" if view.reason else view.phase),
        ("from", view.parent or "-"),
        ("size", size(view.size)),
        ("age", age(view.created_at)),
        *(("run", step) for step in view.steps),
    ]
    session.say("\n".join(f"{name + ':':<7}{printable(text)}" for name, text in lines), view)
    if log and not session.as_json:
        for line in session.client().templates.log(view.id):
            click.echo(printable(line.replace("\t", "    ")))


@template.command()
@click.argument("refs", metavar="NAME_OR_ID...", nargs=-1, required=True)
@pass_session
def delete(session: Session, refs: tuple[str, ...]) -> None:
    """Delete templates that nothing needs any more. One that is being built: its build is cancelled.

    \b
    Example:
      sandkeep template delete web
    """
    for ref in refs:
        session.client().templates.delete(ref)
    session.say("\n".join(f"{ref} is deleted" for ref in refs), {"deleted": list(refs)})
