"""A limit on each key's requests: a token bucket, in memory, of one replica."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class _Bucket:
    tokens: float
    filled: float


@dataclass
class RateLimit:
    """Lets each holder ask ``rate_per_s`` times a second in the long run, and ``burst`` times at once after a pause."""

    rate_per_s: float
    burst: int
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, _Bucket] = field(default_factory=dict)  # one per known key: strangers are turned away before

    def wait_s(self, holder: str) -> float:
        """Takes a token and returns 0, or takes none and returns the seconds until there is one."""
        now = self.clock()
        bucket = self._buckets.setdefault(holder, _Bucket(self.burst, now))
        bucket.tokens = min(float(self.burst), bucket.tokens + (now - bucket.filled) * self.rate_per_s)
        bucket.filled = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self.rate_per_s
        bucket.tokens -= 1
        return 0.0
