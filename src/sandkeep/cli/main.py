"""The `sandkeep` program. `--help` and `--version` are answered here, without importing anything slow."""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code. Called by the entry point, which passes it to sys.exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we were started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as we are
    if "_SANDKEEP_COMPLETE" not in os.environ:
        if not arguments or arguments in (["--help"], ["-h"]):
            from sandkeep.cli.table import help_text

            sys.stdout.write(help_text())
            return 0
        if arguments == ["--version"] or sorted(arguments) == ["--json", "--version"]:
            from sandkeep import __version__

            as_json = len(arguments) > 1
            sys.stdout.write(f'{{"version": "{__version__}"}}\n' if as_json else f"sandkeep {__version__}\n")
            return 0
    from sandkeep.cli.run import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
