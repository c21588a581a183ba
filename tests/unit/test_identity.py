"""How often a key, and who has none, may ask: buckets that fill with time."""

from types import SimpleNamespace
from typing import Any

import pytest

from sandkeep.control.allowance import Allowance
from sandkeep.domain.errors import QuotaExceeded, Unauthenticated
from sandkeep.domain.principal import Principal
from sandkeep.edge.gate.identity import Identity


class Keys:
    """Those that begin with sk_good are known once they were shown; sk_good_granted waits for that."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def remembered(self, secret: str) -> Principal | None:
        if secret not in self.asked:
            return None
        return self._judge(secret)

    def granted(self, secret: str) -> bool:
        return secret == "sk_good_granted"

    async def prove(self, secret: str) -> Principal:
        self.asked.append(secret)
        return self._judge(secret)

    def _judge(self, secret: str) -> Principal:
        if not secret.startswith("sk_good"):
            raise Unauthenticated("unknown", hint="none")
        return Principal(secret, "project")


def request(key: str, address: str = "192.0.2.1") -> Any:
    return SimpleNamespace(headers={"authorization": f"Bearer {key}"}, client=SimpleNamespace(host=address))


def identity(now: list[float], **allowed: Any) -> Identity:
    return Identity(Keys(), Allowance(**allowed), now=lambda: now[0])  # type: ignore[arg-type]


async def test_a_key_above_its_rate_waits_and_others_do_not() -> None:
    now = [100.0]
    gate = identity(now, requests=10.0)
    for _ in range(50):
        await gate.principal(request("sk_good_a"))
    with pytest.raises(QuotaExceeded) as refused:
        await gate.principal(request("sk_good_a"))
    assert refused.value.retry_after == 1
    await gate.principal(request("sk_good_b"))
    now[0] += 0.2
    for _ in range(2):
        await gate.principal(request("sk_good_a"))
    with pytest.raises(QuotaExceeded):
        await gate.principal(request("sk_good_a"))
    now[0] += 3600
    for _ in range(50):
        await gate.principal(request("sk_good_a"))
    with pytest.raises(QuotaExceeded):
        await gate.principal(request("sk_good_a"))


async def test_without_a_rate_nothing_is_counted() -> None:
    gate = identity([0.0], strangers=0)
    for _ in range(1000):
        await gate.principal(request("sk_good"))
    for number in range(100):
        with pytest.raises(Unauthenticated):
            await gate.principal(request(f"sk_{number}"))


async def _guess(gate: Identity, key: str, address: str = "192.0.2.1") -> type[Exception]:
    with pytest.raises((Unauthenticated, QuotaExceeded)) as refused:
        await gate.principal(request(key, address))
    return refused.type


async def test_who_guesses_is_not_listened_to_for_a_while() -> None:
    now = [0.0]
    gate = identity(now, strangers=3)
    await gate.principal(request("sk_good_in_use"))
    assert [await _guess(gate, f"sk_{n}") for n in range(5)] == [Unauthenticated] * 3 + [QuotaExceeded] * 2
    with pytest.raises(QuotaExceeded) as refused:
        await gate.principal(request("sk_good_new"))
    assert refused.value.retry_after == 20
    await gate.principal(request("sk_good_in_use"))
    await gate.principal(request("sk_good_granted"))
    await gate.principal(request("sk_good_new", "192.0.2.2"))
    now[0] += 20
    assert [await _guess(gate, f"sk_again_{n}") for n in range(2)] == [Unauthenticated, QuotaExceeded]


async def test_one_wrong_key_over_and_over_shuts_nobody_out() -> None:
    gate = identity([0.0], strangers=2)
    assert {await _guess(gate, "sk_revoked") for _ in range(10)} == {Unauthenticated}
    await gate.principal(request("sk_good"))


async def test_a_host_has_all_of_its_ipv6_network() -> None:
    gate = identity([0.0], strangers=1)
    assert await _guess(gate, "sk_a", "2001:db8::1") is Unauthenticated
    assert await _guess(gate, "sk_b", "2001:db8::2%eth0") is QuotaExceeded
    assert await _guess(gate, "sk_c", "2001:db8:0:1::1") is Unauthenticated
