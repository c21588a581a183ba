"""Token buckets by key."""

from sandkeep.lib.buckets import Buckets


def test_a_burst_then_the_rate() -> None:
    buckets = Buckets(rate=10, burst=3)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.1]
    assert buckets.take("b", 0.0) == 0
    assert [buckets.take("a", 0.25) == 0 for _ in range(3)] == [True, True, False]
    assert [buckets.take("a", 99.0) == 0 for _ in range(4)] == [True, True, True, False], "never more than the burst"


def test_waiting_takes_nothing() -> None:
    buckets = Buckets(rate=2, burst=1)
    assert [buckets.wait("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", 0.0) == 0
    assert [buckets.wait("a", 0.0) for _ in range(3)] == [0.5, 0.5, 0.5]
    assert buckets.wait("a", 0.5) == 0


def test_it_forgets_who_asked_longest_ago() -> None:
    buckets = Buckets(rate=10, burst=1, most=2)
    assert [buckets.take(key, 0.0) for key in ("a", "b", "a", "c")] == [0, 0, 0.1, 0]
    assert buckets.wait("b", 0.0) == 0
    assert buckets.wait("a", 0.0) > 0
