"""The control plane on the fakes, for tests of logic."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandkeep.testing.platform import LocalPlatform, platform


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalPlatform]:
    async with platform(tmp_path / "platform") as made:
        yield made
