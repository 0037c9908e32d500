"""What a replica had when it died is not poured out over the others: it waits for room there, before all newcomers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from gateway.app import Gateway
from gateway.config import Chain, Queue, Step
from gateway.replica import Replica
from gateway.wire import EventSplitter
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_stream, json_answer, running
from tests.gateway.harness import CONFIG, PATHS, Door, HandClock, opened, request_bytes, wait_until
from tests.gateway.harness import receive_until as until
from tests.gateway.test_continuation import stream_of
from tests.gateway.test_resumption import PIECES, TIMEOUTS, body_of, broken, continuing, is_error, told


@contextmanager
def narrow_pair(*engines: FakeEngine, clock: HandClock | None = None, **changes: object) -> Iterator[Door]:
    """A gateway before engines that run one request at once each."""
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]  # field names are checked by replace itself
    gateway = Gateway(config) if clock is None else Gateway(config, clock=clock)
    for i, engine in enumerate(engines):
        gateway.add(Replica(f"e{i}", engine.url, max_num_seqs=1))
    with opened(gateway) as door:
        door.wait_ready()
        wait_until(lambda: all(replica.most_in_flight == 1 for replica in gateway.pool.replicas))
        yield door


class Caller:
    """One streamed chat request in a thread of its own."""

    def __init__(self, door: Door) -> None:
        self.status = 0
        self.replica = ""
        self.got = b""
        self._door = door
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with self._door.client() as client, client.stream("POST", PATHS["chat"], json=body_of("chat")) as answer:
            self.status, self.replica = answer.status_code, answer.headers["x-berth-replica"]
            for piece in answer.iter_raw():
                self.got += piece

    def wait(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def held(gate: threading.Event, ending: str = "end") -> Script:
    """Nothing comes before `gate` is set, and with "drop" nothing then."""
    chunks = chat_stream().chunks if ending == "end" else ()
    return Script(chunks, ending=ending, gates={BEFORE_HEADERS: gate})  # type: ignore[arg-type]


def asks(door: Door, engine: FakeEngine) -> Caller:
    """The first one to ask this engine, once it has."""
    caller = Caller(door)
    wait_until(lambda: len(engine.seen) == 1)
    return caller


def waits(door: Door, count: int) -> None:
    wait_until(lambda: door.total("berth_requests_waiting") == count)


def test_a_retry_waits_for_room_and_goes_before_newcomers(fake: FakeEngine, second: FakeEngine) -> None:
    dies, ends = threading.Event(), threading.Event()
    with narrow_pair(fake, second) as door:
        fake.enqueue(held(dies, "drop"))
        second.enqueue(held(ends))
        lost, other = asks(door, fake), asks(door, second)
        newcomer = Caller(door)
        waits(door, 1)
        fake.healthy = False
        dies.set()
        waits(door, 2)
        assert len(second.seen) == 1
        assert door.total("berth_retries_total") == 0
        then = threading.Event()
        second.enqueue(held(then))
        ends.set()
        wait_until(lambda: len(second.seen) == 2)
        waits(door, 1)
        assert door.total("berth_retries_total", replica="e0") == 1
        then.set()
        for caller in (lost, other, newcomer):
            caller.wait()
            assert (caller.status, caller.replica) == (200, "e1")
        wait_until(lambda: door.is_at_rest)
        assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="ok") == 3


def test_a_retry_without_room_in_time_is_told_that_its_engine_failed(fake: FakeEngine, second: FakeEngine) -> None:
    dies, ends = threading.Event(), threading.Event()
    with narrow_pair(fake, second, queue=Queue(max_wait_s=0.2)) as door:
        fake.enqueue(held(dies, "drop"))
        second.enqueue(held(ends))
        fake.healthy = False
        lost, other = asks(door, fake), asks(door, second)
        dies.set()
        lost.wait()
        assert lost.status == 502
        assert b"the engine failed before it answered" in lost.got
        ends.set()
        other.wait()
        wait_until(lambda: door.is_at_rest)
        assert door.total("berth_requests_total", outcome="broken", replica="e0") == 1
        assert door.total("berth_retries_total") == 0


@pytest.mark.parametrize("on", ["saturated", "failed"])
def test_and_has_somebody_stand_in_if_there_is_a_chain(fake: FakeEngine, second: FakeEngine, on: str) -> None:
    dies, ends = threading.Event(), threading.Event()
    chain = Chain((Step("other"),), on=frozenset({on}))  # type: ignore[arg-type]
    with (
        running(FakeEngine(models=("other",))) as third,
        narrow_pair(fake, second, third, queue=Queue(max_wait_s=0.2), chains={"fake": chain}) as door,
    ):
        fake.enqueue(held(dies, "drop"))
        second.enqueue(held(ends))
        lost, other = asks(door, fake), asks(door, second)
        fake.healthy = False
        dies.set()
        lost.wait()
        assert (lost.status, lost.replica) == (200, "e2")
        ends.set()
        other.wait()
        wait_until(lambda: door.is_at_rest)


def test_a_retry_whose_caller_leaves_meanwhile_is_not_sent(fake: FakeEngine, second: FakeEngine) -> None:
    dies, ends = threading.Event(), threading.Event()
    with narrow_pair(fake, second) as door:
        fake.enqueue(held(dies, "drop"))
        second.enqueue(held(ends))
        with door.connection() as sock:
            sock.sendall(request_bytes(PATHS["chat"], b'{"model":"fake","messages":[]}'))
            wait_until(lambda: len(fake.seen) == 1)
            other = asks(door, second)
            fake.healthy = False
            dies.set()
            waits(door, 1)
        waits(door, 0)
        ends.set()
        other.wait()
        wait_until(lambda: door.is_at_rest)
        assert len(second.seen) == 1


def test_a_retry_in_line_goes_back_to_a_replica_that_is_well_again(fake: FakeEngine, second: FakeEngine) -> None:
    dies, ends = threading.Event(), threading.Event()
    with narrow_pair(fake, second) as door:
        fake.enqueue(held(dies, "drop"))
        second.enqueue(held(ends))
        lost, other = asks(door, fake), asks(door, second)
        dies.set()
        lost.wait()
        assert (lost.status, lost.replica) == (200, "e0")
        ends.set()
        other.wait()
        wait_until(lambda: door.is_at_rest)


def test_and_not_to_one_that_has_refused_it(fake: FakeEngine, second: FakeEngine) -> None:
    refuses, ends = threading.Event(), threading.Event()
    with narrow_pair(fake, second) as door:
        fake.enqueue(Script(status=503, gates={BEFORE_HEADERS: refuses}))
        second.enqueue(held(ends))
        lost, other = asks(door, fake), asks(door, second)
        refuses.set()
        waits(door, 1)
        newcomer = Caller(door)  # goes where the other one may not
        newcomer.wait()
        assert newcomer.replica == "e0"
        ends.set()
        for caller in (lost, other):
            caller.wait()
            assert (caller.status, caller.replica) == (200, "e1")
        wait_until(lambda: door.is_at_rest)


@contextmanager
def broken_stream(
    fake: FakeEngine, second: FakeEngine, clock: HandClock | None = None, **changes: object
) -> Iterator[tuple[Door, Caller, Caller, threading.Event]]:
    """A stream that broke on e0 and waits for room on e1, what runs there, and what ends that."""
    dies, ends = threading.Event(), threading.Event()
    with narrow_pair(fake, second, clock=clock, **changes) as door:
        fake.enqueue(replace(broken("chat", stream_of("chat", PIECES, "stop")[:4], "killed"), gates={4: dies}))
        second.enqueue(held(ends))
        usual = continuing()
        second.reply = lambda seen: chat_stream() if seen.path == PATHS["chat"] else usual(seen)
        lost, other = asks(door, fake), asks(door, second)
        wait_until(lambda: lost.got)
        fake.healthy = False
        dies.set()
        waits(door, 1)
        yield door, lost, other, ends
        ends.set()


def test_a_broken_stream_waits_for_room_before_all_others(fake: FakeEngine, second: FakeEngine) -> None:
    whole = stream_of("chat", PIECES, "stop")
    with broken_stream(fake, second) as (door, lost, other, ends):
        newcomer = Caller(door)
        waits(door, 2)
        assert len(second.seen) == 1
        ends.set()
        for caller in (lost, other, newcomer):
            caller.wait()
        assert told("chat", EventSplitter().feed(lost.got)) == told("chat", whole)
        paths = [seen.path for seen in second.seen]
        assert paths[0] == paths[-1] == PATHS["chat"]
        assert paths[-2] == "/v1/completions"
        wait_until(lambda: door.is_at_rest)
        assert door.total("berth_continuations_total", replica="e0") == 1
        assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="ok") == 3


def test_a_broken_stream_for_which_there_is_no_room_in_time_goes_on_all_the_same(
    fake: FakeEngine, second: FakeEngine
) -> None:
    clock = HandClock()
    with broken_stream(fake, second, clock, timeouts=TIMEOUTS) as (door, lost, other, ends):
        clock.now_s += 61.0
        lost.wait()
        assert door.total("berth_requests_refused_total") == 0
        assert told("chat", EventSplitter().feed(lost.got)) == told("chat", stream_of("chat", PIECES, "stop"))
        ends.set()
        other.wait()
        wait_until(lambda: door.is_at_rest)


def test_a_broken_stream_in_line_shows_signs_of_life(fake: FakeEngine, second: FakeEngine) -> None:
    clock = HandClock()
    with broken_stream(fake, second, clock, timeouts=replace(TIMEOUTS, keep_alive_s=15.0)) as (door, lost, other, ends):
        clock.now_s += 16.0
        wait_until(lambda: lost.got.endswith(b": keep-alive\n\n"))
        ends.set()
        lost.wait()
        other.wait()
        assert told("chat", EventSplitter().feed(lost.got)) == told("chat", stream_of("chat", PIECES, "stop"))
        wait_until(lambda: door.is_at_rest)


def test_a_broken_stream_in_line_ends_with_an_error_when_the_gateway_does(fake: FakeEngine, second: FakeEngine) -> None:
    with broken_stream(fake, second) as (door, lost, _, _):
        door.do(door.gateway._relay.gate.close)
        lost.wait()
        assert is_error("chat", EventSplitter().feed(lost.got), b"the engine failed during the answer")
        wait_until(lambda: door.total("berth_requests_total", outcome="broken", replica="e0") == 1)
        assert door.total("berth_continuations_total") == 0


def test_a_broken_stream_whose_caller_leaves_the_line_frees_everything(fake: FakeEngine, second: FakeEngine) -> None:
    dies, ends = threading.Event(), threading.Event()
    with narrow_pair(fake, second) as door:
        fake.enqueue(replace(broken("chat", stream_of("chat", PIECES, "stop")[:4], "killed"), gates={4: dies}))
        second.enqueue(held(ends))
        with door.connection() as sock:
            sock.sendall(request_bytes(PATHS["chat"], b'{"model":"fake","stream":true,"messages":[]}'))
            until(sock, b"Hel")
            other = asks(door, second)
            fake.healthy = False
            dies.set()
            waits(door, 1)
        waits(door, 0)
        ends.set()
        other.wait()
        wait_until(lambda: door.is_at_rest)
        assert len(second.seen) == 1
        assert door.total("berth_requests_total", outcome="client_gone", replica="e0") == 1


def test_what_makes_no_tokens_is_tried_again_at_once(fake: FakeEngine, second: FakeEngine) -> None:
    ends = threading.Event()
    with narrow_pair(fake, second) as door:
        fake.enqueue(held(ends))
        other = Caller(door)
        wait_until(lambda: len(fake.seen) == 1)
        fake.enqueue(json_answer({"count": 1}))
        second.enqueue(Script(ending="drop"))  # the idle one is asked first
        answer = door.post("/tokenize", {"model": "fake", "prompt": "hi"})
        assert (answer.status_code, answer.headers["x-berth-replica"]) == (200, "e0")
        assert len(second.seen) == 1
        ends.set()
        other.wait()
        wait_until(lambda: door.is_at_rest)
