"""Started as `python -I -S .../resolver/__main__.py`: no site-packages, no environment, 15 MB instead of 40."""

import os
import sys
from typing import Any

# asyncio runs without ssl, which would be 4 MB of the resolver's 19.
sys.modules["ssl"] = None  # type: ignore[assignment]


def _start() -> Any:
    if not __package__:
        folder = os.path.abspath(__file__)
        for _ in range(5):
            folder = os.path.dirname(folder)
        sys.path.insert(0, folder)
    from sandkeep.drivers.network.resolver.program import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_start())
