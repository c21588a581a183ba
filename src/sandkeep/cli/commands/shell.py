"""sandkeep shell"""

import click

from sandkeep.cli.options import env_option, sandbox_argument
from sandkeep.cli.remote import exit_code_of, run_remote
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@click.option("--user", metavar="U", help="Whose shell (default: the template's user).")
@click.option("--cwd", metavar="D", help="Where it starts.")
@env_option
@click.option("--no-resume", is_flag=True, help="Fail rather than wake a paused or stopped sandbox.")
@pass_session
def shell(session: Session, ref: str, user: str | None, cwd: str | None, env: dict[str, str], no_resume: bool) -> None:
    """Open a login shell in a sandbox. It outlives server restarts, and a pause of the sandbox.

    \b
    Examples:
      sandkeep shell dev
      sandkeep shell dev --user root --cwd /work
    """

    def act() -> int:
        return run_remote(
            session,
            session.sandbox(ref),
            (),
            stdin=True,
            tty=True,
            user=user,
            cwd=cwd,
            env=env,
            timeout=None,
            no_resume=no_resume,
        )

    click.get_current_context().exit(exit_code_of(session, act))
