"""Token buckets: each of many keys may do so much per second, and a burst of it after a quiet time."""


class Buckets:
    """`rate`: tokens per second; `burst`: what a bucket holds; `most`: how many keys are remembered, the one forgotten
    first that asked longest ago. Times are seconds of a clock that only goes forward."""

    def __init__(self, rate: float, burst: float, most: int = 65536) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._left: dict[str, tuple[float, float]] = {}

    def wait(self, key: str, now: float) -> float:
        """Seconds until there is a token for it; 0 when there is one."""
        return max(0.0, 1 - self._filled(key, now)) / self._rate

    def take(self, key: str, now: float) -> float:
        """Takes a token if there is one, and says what `wait` would have said before."""
        left = self._filled(key, now)
        self._left.pop(key, None)
        self._left[key] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > self._most:
            del self._left[next(iter(self._left))]
        return max(0.0, 1 - left) / self._rate

    def _filled(self, key: str, now: float) -> float:
        left, at = self._left.get(key, (self._burst, now))
        return min(self._burst, left + (now - at) * self._rate)
