"""sandkeep completion"""

import click
from click.shell_completion import get_completion_class

from sandkeep.cli.session import Session, pass_session


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print the completion script for a shell; names of sandboxes are completed too.

    \b
    Examples:
      sandkeep completion bash > ~/.local/share/bash-completion/completions/sandkeep
      sandkeep completion zsh > "${fpath[1]}/_sandkeep"
      sandkeep completion fish > ~/.config/fish/completions/sandkeep.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    maker = kind(click.get_current_context().find_root().command, {}, "sandkeep", "_SANDKEEP_COMPLETE")
    # Not maker.source(): that runs bash here to look at its version.
    script = maker.source_template % maker.source_vars()
    session.say(script.rstrip(), {"shell": shell, "script": script})
