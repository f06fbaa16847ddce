"""Sends tiles to an endpoint from many clients at once, and checks every single answer."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

Check = Callable[[int, dict[str, object]], str | None]
"""Takes the tile's number and the answer; returns what is wrong with it, or None."""


@dataclass
class Seen:
    """What came back."""

    statuses: Counter[int | str] = field(default_factory=Counter)  # a word where there was no answer at all
    models: list[str] = field(default_factory=list)  # of each answer, in the order of arrival
    wrong: list[str] = field(default_factory=list)
    retry_after: Counter[str | None] = field(default_factory=Counter)  # of each 429

    @property
    def num_failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses[200]


def send_for(
    url: str, tiles: Sequence[bytes], check: Check, num_clients: int, until: Callable[[], bool], timeout_s: float = 30.0
) -> Seen:
    """Sends until the condition holds; returns when every request has ended."""
    seen = Seen()

    async def client(number: int, http: httpx.AsyncClient) -> None:
        turn = number
        while not until():
            turn += num_clients
            await _send(http, tiles, turn % len(tiles), check, seen)

    async def everybody() -> None:
        limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
        async with httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits) as http:
            await asyncio.gather(*(client(number, http) for number in range(num_clients)))

    asyncio.run(everybody())
    return seen


def seconds(length: float) -> Callable[[], bool]:
    """A condition that holds so many seconds from now."""
    end = time.monotonic() + length
    return lambda: time.monotonic() > end


async def _send(http: httpx.AsyncClient, tiles: Sequence[bytes], tile: int, check: Check, seen: Seen) -> None:
    try:
        response = await http.post("/v1/predict", content=tiles[tile], headers={"content-type": "image/png"})
    except httpx.TransportError as error:
        seen.statuses[type(error).__name__] += 1
        return
    seen.statuses[response.status_code] += 1
    if response.status_code == 429:
        seen.retry_after[response.headers.get("Retry-After")] += 1
    if response.status_code == 200:
        answer = response.json()
        seen.models.append(answer["model"])
        if (wrong := check(tile, answer)) is not None:
            seen.wrong.append(wrong)
