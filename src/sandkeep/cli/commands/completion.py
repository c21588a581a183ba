"""sandkeep completion"""

import click
from click.shell_completion import get_completion_class

from sandkeep.cli.session import Session, pass_session

# Not click's: bash takes words apart at @ and : (COMP_WORDBREAKS), so NAME@SNAPSHOT:/PATH is put together again for the
# question, and the answer leaves out what bash does not replace.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' words=() word at last mark cut= response kind value
    for ((at = 0; at <= COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if ((at > 0)) && [[ $word == [@:] || ( -n $word && ${COMP_WORDS[at - 1]} == [@:] ) ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    last=${words[-1]}
    for mark in @ :; do
        [[ $last == *$mark* && $COMP_WORDBREAKS == *$mark* ]] || continue
        value=${last%%"${last##*$mark}"}
        ((${#value} <= ${#cut})) || cut=$value
    done
    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$cut"}")
                ;;
        esac
    done <<< "$response"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print the completion script for a shell; names of sandboxes and snapshots are completed too.

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
    script = (_BASH if shell == "bash" else maker.source_template) % maker.source_vars()
    session.say(script.rstrip(), {"shell": shell, "script": script})
