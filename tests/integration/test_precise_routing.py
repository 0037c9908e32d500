"""What the gateway predicts to be cached beside what a real engine then finds, with its KV events and without."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.replica import Replica
from tests.gateway.harness import Door, opened, wait_until
from tests.integration.publishing import BLOCK_TOKENS, Engine, chat, running, words

CAPACITY_TOKENS = 2144
SLACK_TOKENS = 2 * BLOCK_TOKENS
"""As in `Pick.slack_tokens`: less is only rounding."""
_REQUESTS, _RESET_EVERY = 40, 10
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@dataclass
class Tally:
    """Tokens over all requests of one run."""

    requests: int = 0
    predicted: int = 0
    found: int = 0
    too_many: int = 0
    """Predicted and not found."""
    too_few: int = 0
    wrong: int = 0
    """Requests that were wrong by more than rounding."""

    def note(self, predicted: int, found: int) -> None:
        self.requests += 1
        self.predicted += predicted
        self.found += found
        self.too_many += max(predicted - found, 0)
        self.too_few += max(found - predicted, 0)
        self.wrong += abs(predicted - found) > SLACK_TOKENS

    def row(self, name: str) -> str:
        figures = (self.requests, self.predicted, self.found, self.too_many, self.too_few, self.wrong)
        return f"{name:<32}" + "".join(f"{figure:>11}" for figure in figures)


HEAD = f"{'':<32}" + "".join(
    f"{name:>11}" for name in ("requests", "predicted", "found", "too many", "too few", "wrong")
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="berth-") as folder, running(Path(folder)) as one:
        yield one


def direct(engine: Engine) -> httpx2.Client:
    """Past the gateway."""
    path = engine.spec.url.removeprefix("unix:")
    return httpx2.Client(base_url="http://engine", transport=httpx2.HTTPTransport(uds=path), timeout=60)


@contextmanager
def gateway(engine: Engine, *, is_precise: bool) -> Iterator[Door]:
    made = Gateway(GatewayConfig(kv_events=is_precise))
    made.add(Replica("e0", engine.spec.url, predicted_kv_tokens=CAPACITY_TOKENS))
    with opened(made) as door:
        door.wait_ready()
        wait_until(lambda: routing(door)["precise"] is is_precise)
        yield door


def routing(door: Door) -> dict[str, Any]:
    found: dict[str, Any] = door.get("/status").json()["replicas"][0]["routing"]
    return found


def ask(door: Door, payload: dict[str, Any], tally: Tally) -> None:
    answer = door.post("/v1/chat/completions", json=payload)
    assert answer.status_code == 200, answer.text
    tally.note(int(answer.headers["x-berth-predicted-cached-tokens"]), int(answer.headers["x-berth-cached-tokens"]))


def talk(door: Door, engine: Engine, *, resets: bool, others: bool) -> Tally:
    """Six conversations, which do not fit into the cache together, in any order."""
    rng, tally = random.Random(5), Tally()
    talks: list[list[str]] = [[words(rng, 150)] for _ in range(6)]
    with direct(engine) as past:
        for turn in range(_REQUESTS):
            if resets and turn % _RESET_EVERY == _RESET_EVERY - 1:
                assert past.post("/reset_prefix_cache").status_code == 200
            if others and turn % 5 == 4:
                past.post("/v1/chat/completions", json=chat(words(rng, 400))).raise_for_status()
            said = rng.choice(talks)
            ask(door, {**chat(*said), "max_tokens": 8}, tally)
            said += [words(rng, 30), words(rng, 40)]
            if len(said) > 9:
                said[:] = [words(rng, 150)]
    return tally


def both(engine: Engine, name: str, *, resets: bool = False, others: bool = False) -> tuple[Tally, Tally]:
    """Without its events and with them, the same requests each time, from an empty cache."""
    tallies = []
    for is_precise in (False, True):
        with direct(engine) as past:
            assert past.post("/reset_prefix_cache").status_code == 200
        with gateway(engine, is_precise=is_precise) as door:
            tallies.append(talk(door, engine, resets=resets, others=others))
    approximate, precise = tallies
    rows = (approximate.row(f"{name}, answers only"), precise.row(f"{name}, KV events"))
    print("", HEAD, *rows, sep="\n")  # noqa: T201
    assert approximate.found == precise.found > 0
    return approximate, precise


def test_what_others_push_out_is_known_before_it_is_missed(engine: Engine) -> None:
    approximate, precise = both(engine, "others ask it too", others=True)
    assert approximate.too_many > 4 * precise.too_many
    assert approximate.wrong > precise.wrong


def test_a_reset_is_known_from_the_next_step_on(engine: Engine) -> None:
    """vLLM tells of it no sooner: so the first request after each may be wrong, and no other."""
    approximate, precise = both(engine, "resets", resets=True)
    assert precise.wrong <= _REQUESTS // _RESET_EVERY
    assert precise.too_many <= approximate.too_many
