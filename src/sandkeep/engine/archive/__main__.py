"""Started as `python -I -m sandkeep.engine.archive`: neither the environment nor a working folder says what it loads."""

import sys

from sandkeep.engine.archive.program import main

if __name__ == "__main__":
    sys.exit(main())
