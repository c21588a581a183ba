"""sandkeep exec"""

from typing import Any

import click

from sandkeep.cli.options import env_option, exec_options, sandbox_argument
from sandkeep.cli.remote import exit_code_of, run_remote
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@exec_options
@env_option
@click.option("--no-resume", is_flag=True, help="Fail rather than wake a paused or stopped sandbox.")
@click.option("--snapshot-first", is_flag=True, help="Keep its disk as it is before; else nothing runs.")
@pass_session
def exec_(session: Session, /, ref: str, command: tuple[str, ...], **options: Any) -> None:
    """Run a command in a sandbox; its output comes as it is made, its exit code is passed on.

    Ctrl-C kills it. Its output goes on after the server restarted, or the sandbox was paused and resumed.

    \b
    Examples:
      sandkeep exec dev -- python3 -c 'print(1 + 1)'
      sandkeep exec dev --cwd /work --env CI=1 --timeout 5m -- make test
      tar c src | sandkeep exec dev -i -- tar x -C /work
      sandkeep exec dev -it -- vim notes.txt
    """
    code = exit_code_of(session, lambda: run_remote(session, session.sandbox(ref), command, **options))
    click.get_current_context().exit(code)
