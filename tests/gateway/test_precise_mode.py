"""A gateway that hears what its engines hold: a scripted engine, its publisher on real sockets. A token is a word."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest

from gateway.errors import ConfigError
from gateway.kv_events import source
from serving.config import StackConfig
from serving.door_config import door_settings
from serving.environment import Environment
from serving.front import load_front
from tests.fake_engine import FakeEngine, Script, Seen, json_answer, running
from tests.gateway.harness import Door, door_before, wait_until
from tests.gateway.kv_events.batches import CLEARED, removed, stored
from tests.gateway.kv_events.publisher import Publisher

T = TypeVar("T")
WORDS = [f"w{number:03}" for number in range(80)]
PROMPT = " ".join(WORDS)
"""399 bytes: one text of 256, in which 51 words are whole, of which the last one may go on: so 25 blocks of two."""
BODY = {"model": "fake", "prompt": PROMPT, "max_tokens": 1}
COMPUTED = stored(list(range(40)), None, list(range(80)))


def reply(seen: Seen) -> Script:
    if seen.path == "/tokenize":
        words = orjson.loads(seen.body)["prompt"].split(" ")
        pieces = [words[0], *("\u0120" + word for word in words[1:])]
        return json_answer({"tokens": [int(word[1:]) for word in words], "token_strs": pieces})
    usage = {"prompt_tokens": 80, "completion_tokens": 1, "total_tokens": 81, "prompt_tokens_details": None}
    return json_answer({"id": "c", "object": "text_completion", "choices": [], "usage": usage})


@contextmanager
def engine() -> Iterator[FakeEngine]:
    with running(FakeEngine(reply=reply)) as fake:
        yield fake


class Voice:
    """A publisher in a thread and event loop of its own."""

    def __init__(self, folder: Path) -> None:
        self.publisher = Publisher(folder)
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()

    def do(self, doing: Coroutine[Any, Any, T]) -> T:
        """And wait until it is done."""
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(10)

    def say(self, *events: object, is_lost: bool = False) -> None:
        """One batch."""
        self.do(self.publisher.say(*events, is_lost=is_lost))

    @contextmanager
    def running(self) -> Iterator["Voice"]:
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self.do(self._stack.enter_async_context(self.publisher.running()))
        try:
            yield self
        finally:
            self.do(self._stack.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(10)
            self._loop.close()


@contextmanager
def precise(folder: Path) -> Iterator[tuple[FakeEngine, Voice, Door]]:
    with Voice(folder).running() as voice, engine() as fake:
        found = voice.publisher.source
        fake.event_sources = {
            "0": {"publisher": "zmq", "endpoint": found.endpoint, "replay_endpoint": found.replay_endpoint}
        }
        with door_before(fake, kv_events=True) as door:
            until(door, precise=True)
            yield fake, voice, door


def routing(door: Door) -> dict[str, Any]:
    found: dict[str, Any] = door.get("/status").json()["replicas"][0]["routing"]
    return found


def until(door: Door, **wanted: object) -> None:
    wait_until(lambda: wanted.items() <= routing(door).items())


def predicted(door: Door) -> int:
    """Tokens, as the header of one more answer says."""
    answer = door.post("/v1/completions", BODY)
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-berth-predicted-cached-tokens"])


def test_an_eviction_is_known_before_the_next_request(tmp_path: Path) -> None:
    with precise(tmp_path) as (_, voice, door):
        voice.say(COMPUTED)
        until(door, kv_blocks=40)
        assert predicted(door) == 0
        until(door, said_blocks=1)
        assert predicted(door) > 0
        voice.say(removed(24))  # the last one of the text
        until(door, said_blocks=0, kv_blocks=39)
        assert predicted(door) == 0
        voice.say(stored([24], 23, [48, 49]), removed(25))  # which is behind it
        until(door, said_blocks=1, kv_blocks=39)
        assert predicted(door) > 0
        voice.say(CLEARED)
        until(door, said_blocks=0, kv_blocks=0)
        assert predicted(door) == 0
        assert door.total("berth_kv_events_total", replica="e0") == 5
        assert door.total("berth_kv_complete", replica="e0") == 1


def test_a_text_is_asked_about_once(tmp_path: Path) -> None:
    with precise(tmp_path) as (fake, voice, door):
        voice.say(COMPUTED)
        until(door, kv_blocks=40)
        predicted(door)
        until(door, said_blocks=1)
        predicted(door)
        assert [seen.path for seen in fake.seen].count("/tokenize") == 1


def test_a_lost_batch_is_counted(tmp_path: Path) -> None:
    with precise(tmp_path) as (_, voice, door):
        voice.say(stored([1], None, [1, 2]))
        until(door, kv_blocks=1)
        voice.say(stored([2], None, [3, 4]), is_lost=True)
        voice.say(stored([3], None, [5, 6]))
        until(door, kv_blocks=3)
        names = ("events", "event_gaps", "event_losses")
        assert [door.total(f"berth_kv_{name}_total", replica="e0") for name in names] == [3, 1, 0]
        assert door.total("berth_kv_event_replays_total", replica="e0") == len(voice.publisher.asked)


def test_an_engine_that_has_left_is_not_listened_to(tmp_path: Path) -> None:
    with precise(tmp_path) as (_, voice, door):
        voice.say(COMPUTED)
        until(door, kv_blocks=40)
        predicted(door)
        until(door, said_blocks=1)
        pool = door.gateway.pool
        (replica,) = pool.replicas
        loop = door.gateway._precise._listening[replica].get_loop()
        asyncio.run_coroutine_threadsafe(pool.remove(replica), loop).result(10)
        assert replica.slot == -1
        assert not pool.router.index._runs
        assert pool.router.index._words
        assert not pool.router.index._words.holders
        assert not door.gateway._precise._index.caches(0)
        assert door.total("berth_kv_blocks") == 0


@pytest.mark.parametrize("sources", [None, {}, {"0": {"publisher": "null", "endpoint": "tcp://*:5557"}}])
def test_an_engine_that_publishes_nothing_is_known_by_what_it_was_sent(sources: dict[str, Any] | None) -> None:
    with engine() as fake:
        fake.event_sources = sources
        with door_before(fake, kv_events=True) as door:
            wait_until(lambda: door.gateway._precise._asked)
            door.post("/v1/completions", BODY)
            second = door.post("/v1/completions", BODY)
            assert int(second.headers["x-berth-predicted-cached-tokens"]) > 0
            found = routing(door)
            assert (found["precise"], found["said_blocks"], found["kv_blocks"]) == (False, 0, None)
            assert not [seen for seen in fake.seen if seen.path == "/tokenize"]


def test_nobody_is_asked_where_it_is_not_wanted() -> None:
    with engine() as fake, door_before(fake) as door:
        door.post("/v1/completions", BODY)
        assert door.gateway._relay.precise is None
        assert not door.gateway._precise._asked


def test_without_its_packages_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda _: None)
    environment = Environment()
    for config in (_stack(kv_events=True), load_front(None, ["http://e:1"], {}, kv_events=True)):
        with pytest.raises(ConfigError, match=r"pip install 'berth\[events\]'"):
            door_settings(config, environment)
    assert not door_settings(_stack(kv_events=False), environment).kv_events


def _stack(*, kv_events: bool) -> StackConfig:
    return StackConfig.model_validate({"models": [{"model": "demo", "kv_events": kv_events}]})
