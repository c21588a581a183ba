"""The rate of a key: a bucket that fills with time, one for each key."""

from types import SimpleNamespace
from typing import Any

import pytest

from sandkeep.domain.errors import QuotaExceeded
from sandkeep.domain.principal import Principal
from sandkeep.edge.gate.identity import Identity


class Keys:
    async def prove(self, secret: str) -> Principal:
        return Principal(secret, "project")


def request(key: str) -> Any:
    return SimpleNamespace(headers={"authorization": f"Bearer {key}"})


async def test_a_key_above_its_rate_waits_and_others_do_not() -> None:
    now = 100.0
    identity = Identity(Keys(), rate=10.0, now=lambda: now)  # type: ignore[arg-type]
    for _ in range(50):
        await identity.principal(request("sk_a"))
    with pytest.raises(QuotaExceeded) as refused:
        await identity.principal(request("sk_a"))
    assert refused.value.retry_after == 1
    await identity.principal(request("sk_b"))
    now += 0.2
    for _ in range(2):
        await identity.principal(request("sk_a"))
    with pytest.raises(QuotaExceeded):
        await identity.principal(request("sk_a"))
    now += 3600
    for _ in range(50):
        await identity.principal(request("sk_a"))
    with pytest.raises(QuotaExceeded):
        await identity.principal(request("sk_a"))


async def test_without_a_rate_nothing_is_counted() -> None:
    identity = Identity(Keys(), now=lambda: 0.0)  # type: ignore[arg-type]
    for _ in range(1000):
        await identity.principal(request("sk_a"))
