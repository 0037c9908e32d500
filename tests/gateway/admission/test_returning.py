"""Those that lost their place with a replica: first of all, bound by the same room, and in nobody's way."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from gateway.admission.gate import Gate
from gateway.admission.line import Asker, Return
from gateway.config import Queue, Slo
from gateway.errors import RefusedError
from gateway.replica import ModelCard, Replica
from tests.gateway.admission.test_gate import Crowd, Request, call
from tests.gateway.harness import HandClock
from tests.gateway.placing import route

STREAM, RETRY = True, False


class Pair:
    """A gate before two replicas of `m` (`a` and `b`), each with room for one request, and one for all that comes."""

    def __init__(self, queue: Queue | None = None, slo: Slo | None = None, kv_tokens: int | None = None) -> None:
        self.clock = HandClock()
        self.a, self.b = (
            Replica(
                name,
                "http://r",
                (ModelCard("m", 1000),),
                predicted_kv_tokens=kv_tokens,
                state="ready",
                max_num_seqs=None if kv_tokens else 1,
            )
            for name in "ab"
        )
        self.there = [self.a, self.b]
        slos = {} if slo is None else {"m": slo}
        self.gate = Gate(lambda: [self.a, self.b], lambda _: self.there, self.clock, queue or Queue(), slos)
        self.gate.refresh()

    def come(self, request: Request | None = None, caller: str = "ann") -> Request:
        """For the first time."""
        request = request or Request()
        free = self.gate.enter(call(b"", None), route(request.tokens), self.there)
        if free:
            request.admitted(free)
            return request
        try:
            self.gate.wait("m", Asker(caller), route(request.tokens), request)
        except RefusedError as error:
            request.fault = error.fault
        return request

    def lose(self, request: Request, is_streaming: bool, arrived_s: float = 0.0, others: bool = True) -> Request:
        """Its replica fails it, and it goes to another one (or to any) now or later."""
        replica = self.release(request)
        request.tried = [replica] if others else []
        free = self.gate.free("m", route(request.tokens), request.among(self.there))
        if free:
            request.admitted(free)
        else:
            back = Return(is_streaming, arrived_s)
            self.gate.wait_again("m", Asker("ann"), route(request.tokens), back, request)
        return request

    def release(self, request: Request) -> Replica:
        assert request.pick is not None
        pick, request.pick = request.pick, None
        pick.release()
        return pick.load

    def end(self, request: Request) -> None:
        self.release(request)
        if self.gate.is_busy:
            self.gate.serve()


def on(request: Request) -> Replica | None:
    return None if request.pick is None else request.pick.load


def test_who_lost_its_place_goes_where_there_is_room() -> None:
    pair = Pair()
    assert on(pair.lose(pair.come(), RETRY)) is pair.b
    assert not pair.gate.is_busy


def test_and_else_stands_before_all_that_have_had_none() -> None:
    pair = Pair()
    lost, other = pair.come(), pair.come()
    newcomer = pair.come()
    pair.there = [pair.b]  # its replica is gone
    pair.lose(lost, RETRY)
    assert (lost.place is not None, newcomer.place is not None) == (True, True)
    pair.end(other)
    assert (on(lost), on(newcomer)) == (pair.b, None)


def test_streams_go_first_and_then_who_has_been_here_longest() -> None:
    pair = Pair()
    requests = []
    for is_streaming, arrived_s in ((RETRY, 5.0), (RETRY, 3.0), (STREAM, 9.0), (STREAM, 7.0)):
        pair.there = [pair.a]
        requests.append(pair.come())
        pair.there = [pair.b]
        if len(requests) == 1:
            running = pair.come()
        pair.lose(requests[-1], is_streaming, arrived_s)
    order = []
    for _ in requests:
        pair.end(running)
        (running,) = (request for request in requests if request.pick is not None)
        order.append(requests.index(running))
    assert order == [3, 2, 1, 0]


def test_room_where_it_may_not_go_is_for_those_behind_it() -> None:
    pair = Pair()
    lost, other = pair.come(), pair.come()
    pair.lose(lost, RETRY)  # its replica is there all the same, and has room
    newcomer = pair.come()
    assert (on(lost), on(newcomer)) == (None, pair.a)
    late = pair.come()
    pair.end(other)  # this is the room that was kept for it
    assert (on(lost), on(late)) == (pair.b, None)


def test_who_stands_in_line_already_gets_what_it_leaves() -> None:
    pair = Pair()
    lost, _, newcomer = pair.come(), pair.come(), pair.come()
    pair.lose(lost, RETRY)
    assert (on(lost), on(newcomer)) == (None, pair.a)


def test_a_full_line_has_a_place_for_it_and_nobody_is_pushed_out() -> None:
    pair = Pair(Queue(max_waiting=1))
    lost, _, waiting = pair.come(), pair.come(), pair.come()
    pair.there = [pair.b]
    pair.lose(lost, RETRY)
    assert (lost.place is not None, waiting.place is not None) == (True, True)
    assert pair.gate.desk("m").line.count == 2
    assert pair.come().fault is not None


def test_it_has_as_long_as_anybody_may_wait_whatever_was_promised_of_first_tokens() -> None:
    pair = Pair(Queue(max_wait_s=60.0), Slo(ttft_s=2.0))
    for replica in (pair.a, pair.b):
        replica.most_in_flight = 1
    lost, _ = pair.come(), pair.come()
    pair.clock.now_s += 100.0
    pair.there = [pair.b]
    pair.lose(lost, RETRY)
    assert lost.place is not None
    assert lost.place.until_s == pair.clock.now_s + 60.0
    assert pair.gate.check_time(lost.place, pair.clock.now_s + 60.1) is not None
    assert not pair.gate.is_busy


def test_the_kv_budget_of_those_that_are_left_is_kept() -> None:
    pair = Pair(kv_tokens=1000)  # 950 of them to be given away
    lost = []
    for _ in range(3):
        pair.there = [pair.a]
        lost.append(pair.come(Request(300)))
        pair.there = [pair.b]
        pair.come(Request(300))
    for request in lost:
        pair.lose(request, STREAM)
    assert pair.b.kv_tokens == 900
    assert len(pair.gate.desk("m").line.returned) == 3


def test_when_the_one_before_leaves_those_behind_it_are_served() -> None:
    pair = Pair(kv_tokens=1000)
    pair.there = [pair.a]
    pair.come(Request(800))
    large, small = pair.come(Request(500)), pair.come(Request(100))
    assert large.place is not None
    pair.gate.leave(large.place)
    assert on(small) is pair.a


def test_at_the_end_of_the_gateway_those_are_told_too() -> None:
    pair = Pair()
    lost, _, newcomer = pair.come(), pair.come(), pair.come()
    pair.there = [pair.b]
    pair.lose(lost, STREAM)
    pair.gate.close()
    for request in (lost, newcomer):
        assert request.fault is not None
        assert request.fault.code == "shutting_down"
    assert not pair.gate.is_busy


def test_who_is_pushed_out_may_make_room_for_whoever_pushed_it() -> None:
    pair = Pair(Queue(max_waiting=1))
    running, _ = pair.come(), pair.come()

    class Together(Request):
        """One whose other half is on a replica, and ends with it."""

        def turned_away(self, fault: object) -> None:
            self.place = None
            pair.end(running)

    pair.come(Together())
    pair.come(caller="ann")
    urgent = Request()
    pair.gate.wait("m", Asker("bob", "high"), route(10), urgent)
    assert (on(urgent), urgent.place) == (pair.a, None)
    assert not pair.gate.is_busy


class AnyLoss(Crowd):
    """Requests come, end, leave, and lose their places: bounds are kept, nobody is admitted twice or forgotten, and no
    replica is idle that somebody may go to."""

    def __init__(self) -> None:
        self.pair = Pair(Queue(max_waiting=3, max_wait_s=30.0), kv_tokens=400)  # 380 to be given away
        super().__init__(self.pair.gate, self.pair.clock)

    @rule(tokens=st.integers(1, 390), caller=st.sampled_from(["ann", "bob"]))
    def come(self, tokens: int, caller: str) -> None:
        self.requests.append(self.pair.come(Request(tokens), caller))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.requests.remove(request)
        self.pair.end(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_streaming=st.booleans(), arrived_s=st.integers(0, 9), others=st.booleans())
    def lose(self, data: st.DataObject, is_streaming: bool, arrived_s: int, others: bool) -> None:
        self.pair.lose(data.draw(st.sampled_from(self.running)), is_streaming, arrived_s, others)
        if self.pair.gate.is_busy:
            self.pair.gate.serve()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        assert request.place is not None
        self.requests.remove(request)
        self.pair.gate.leave(request.place)

    @rule(there=st.sampled_from(["a", "b", "ab", ""]))
    def be_there(self, there: str) -> None:
        self.pair.there = [replica for replica in (self.pair.a, self.pair.b) if replica.name in there]
        self.pair.gate.refresh()

    @invariant()
    def counts_are_what_is_there(self) -> None:
        line = self.pair.gate.desk("m").line
        for replica in (self.pair.a, self.pair.b):
            there = [request for request in self.running if on(request) is replica]
            assert replica.in_flight == len(there)
            assert replica.kv_tokens == sum(request.tokens for request in there)
            assert replica.kv_tokens <= 380 or len(there) == 1
        assert line.count == len(self.waiting)
        assert line.tokens == sum(request.tokens for request in self.waiting)
        assert line.count - len(line.returned) <= 3
        assert self.pair.gate.is_busy == bool(self.waiting)
        for request in self.requests:
            assert (request.pick is not None) + (request.place is not None) + (request.fault is not None) == 1

    @invariant()
    def an_idle_replica_is_taken_by_whoever_may_go_there(self) -> None:
        for replica in self.pair.there:
            if not replica.in_flight:
                assert not any(replica in request.among(self.pair.there) for request in self.waiting)

    @invariant()
    def streams_stand_before_all_others(self) -> None:
        backs = [place.back for place in self.pair.gate.desk("m").line.returned if place.back is not None]
        assert backs == sorted(backs, key=lambda back: (not back.is_streaming, back.arrived_s))


TestAnyLoss = AnyLoss.TestCase


def test_nobody_is_kept_from_a_line_by_those_that_are_back_for_ever() -> None:
    """Newcomers wait behind those that are back, who are no more than were in flight."""
    pair = Pair()
    pair.there = [pair.a]
    lost = pair.come()
    pair.there = [pair.b]
    running, newcomer = pair.come(), pair.come()
    pair.lose(lost, STREAM)
    pair.end(running)
    assert on(newcomer) is None
    pair.end(lost)
    assert on(newcomer) is pair.b


@pytest.mark.parametrize("is_streaming", [STREAM, RETRY])
def test_without_a_queue_it_goes_on_at_once(is_streaming: bool) -> None:
    pair = Pair(Queue(is_enabled=False))
    pair.there = [pair.b]
    for _ in range(3):
        assert on(pair.come()) is pair.b
    pair.there = [pair.a, pair.b]
    lost = pair.come()
    assert on(lost) is pair.a
    assert on(pair.lose(lost, is_streaming)) is pair.b
