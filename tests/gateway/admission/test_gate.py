"""Who goes on, who waits, and who is turned away, and what each is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.admission.desk import Waiter
from gateway.admission.gate import Answer, Gate
from gateway.admission.line import PRIORITIES, Asker, Place, Priority
from gateway.config import Queue, Slo
from gateway.errors import RefusedError
from gateway.replica import ModelCard, Replica
from gateway.routing import CUTS, Chain, Pick, Route
from gateway.wire import ENDPOINTS, Call, Fault, Usage, parse_call
from tests.gateway.harness import HandClock
from tests.gateway.placing import placed, route

CHAT = ENDPOINTS["/v1/chat/completions"]


@dataclass
class Request:
    """One that takes its place as soon as it may, as an exchange does."""

    tokens: int = 10
    place: Place[Waiter] | None = None
    pick: Pick[Replica] | None = None
    fault: Fault | None = None
    tried: Sequence[Replica] = ()

    def stands(self, place: Place[Waiter]) -> None:
        self.place = place

    def among(self, candidates: Sequence[Replica]) -> Sequence[Replica]:
        return [replica for replica in candidates if replica not in self.tried]

    def admitted(self, candidates: Sequence[Replica]) -> None:
        self.place = None
        self.pick = placed(candidates[0], self.tokens)

    def turned_away(self, fault: Fault) -> None:
        self.place = None
        self.fault = fault


@dataclass
class Desk:
    """A gate before one replica of `m`."""

    queue: Queue = field(default_factory=Queue)
    slo: Slo | None = None
    max_num_seqs: int | None = 1

    def __post_init__(self) -> None:
        self.clock = HandClock()
        self.replica = Replica("r", "http://r", (ModelCard("m", 1000),), state="ready", max_num_seqs=self.max_num_seqs)
        slos = {} if self.slo is None else {"m": self.slo}
        self.gate = Gate(lambda: [self.replica], self.candidates, self.clock, self.queue, slos)
        self.gate.refresh()
        self.is_away = False

    def candidates(self, model: str) -> Sequence[Replica]:
        if self.is_away:
            raise RefusedError(Fault(503, "away", code="not_ready"))
        return [self.replica]

    def come(self, request: Request, caller: str = "ann", priority: Priority = "normal") -> Request:
        """As an exchange does."""
        asked = route(request.tokens)
        free = self.gate.enter(call(b"", None), asked, [self.replica])
        if free:
            request.admitted(free)
            return request
        try:
            self.gate.wait("m", Asker(caller, priority), asked, request)
        except RefusedError as error:
            request.fault = error.fault
        return request

    def learn(self, ttft_s: float = 0.1, prompt_tokens: int = 60, output_tokens: int = 40) -> None:
        """An answer has come."""
        usage = Usage(prompt_tokens, output_tokens)
        pick = placed(self.replica)
        self.gate.learn(pick, call(b"", None), usage, Answer(1, self.clock.now_s, ttft_s, None))
        pick.release()

    def fits(self, asked: Call) -> bool:
        """Whether it is not refused."""
        return bool(self.gate.enter(asked, route(), [self.replica]))

    def end(self, request: Request) -> None:
        assert request.pick is not None
        request.pick.release()
        if self.gate.is_busy:
            self.gate.serve()


def test_where_there_is_room_a_request_goes_on_and_where_there_is_none_it_waits_for_it() -> None:
    desk = Desk()
    first, second = desk.come(Request()), desk.come(Request())
    assert first.pick is not None
    assert (second.pick, second.place is not None) == (None, True)
    desk.end(first)
    assert second.pick is not None
    assert not desk.gate.is_busy


def test_room_in_the_kv_cache_is_room_for_the_prompt_and_its_likely_answer() -> None:
    desk = Desk(max_num_seqs=None)
    desk.replica.kv_capacity_tokens = 1000  # 950 of them to be given away
    desk.gate.refresh()
    first, second, third = (desk.come(Request(tokens)) for tokens in (500, 450, 1))
    assert second.pick is not None
    assert third.pick is None
    desk.end(first)
    assert third.pick is not None


def test_nobody_overtakes_those_who_wait() -> None:
    desk = Desk(max_num_seqs=None)
    desk.replica.kv_capacity_tokens = 1000
    desk.gate.refresh()
    first, large, small = desk.come(Request(900)), desk.come(Request(500)), desk.come(Request(10))
    assert (large.pick, small.pick) == (None, None)  # there would be room for the small one
    desk.end(first)
    assert large.pick is not None
    assert small.pick is not None


def test_without_a_queue_everybody_goes_on_at_once() -> None:
    desk = Desk(Queue(is_enabled=False))
    assert all(desk.come(Request()).pick is not None for _ in range(5))


def test_a_full_line_says_so_and_when_to_come_again() -> None:
    desk = Desk(Queue(max_waiting=1))
    desk.come(Request())
    desk.come(Request())
    fault = desk.come(Request()).fault
    assert fault is not None
    assert (fault.status, fault.code, fault.retry_after_s) == (503, "overloaded", 1)
    assert fault.message == "no room on any replica, and no place in line (1 waiting); try again in 1 s"
    assert desk.gate.desk("m").refused["full"] == 1


def test_who_has_waited_for_too_long_is_turned_away() -> None:
    desk = Desk(Queue(max_wait_s=10.0))
    desk.come(Request())
    second = desk.come(Request())
    assert second.place is not None
    assert desk.gate.check_time(second.place, desk.clock.now_s + 10.0) is None
    fault = desk.gate.check_time(second.place, desk.clock.now_s + 10.1)
    assert fault is not None
    assert (fault.status, fault.code) == (503, "overloaded")
    assert not desk.gate.is_busy


def test_whoever_could_not_be_served_in_time_is_told_at_once() -> None:
    desk = Desk(Queue(max_wait_s=10.0))
    running = desk.come(Request(100))
    line = [desk.come(Request(100)) for _ in range(9)]
    for request in line[:5]:  # 100 tokens every two seconds: about 53 a second, as later ones count more
        desk.clock.now_s += 2.0
        desk.end(running)
        assert request.pick is not None
        running = request
    assert desk.come(Request(50)).fault is None  # with the four in line 450: eight and a half seconds
    fault = desk.come(Request(200)).fault  # 650 take more than twelve, over two more than anybody waits
    assert fault is not None
    assert fault.message.startswith("no room on any replica, and the line is too long to be served in time")
    assert fault.retry_after_s == 3
    assert desk.gate.desk("m").refused["slow"] == 1


def test_with_an_slo_a_request_waits_no_longer_than_its_first_token_allows() -> None:
    desk = Desk(slo=Slo(ttft_s=2.0))
    for _ in range(10):
        desk.learn(ttft_s=0.5)
    desk.gate.refresh()
    desk.come(Request())
    second = desk.come(Request())
    assert second.place is not None
    assert second.place.until_s - desk.clock.now_s == pytest.approx(1.5)


def test_whoever_is_late_when_room_is_made_is_not_served_but_the_next_one_is() -> None:
    desk = Desk(Queue(max_wait_s=10.0))
    running, second = desk.come(Request()), desk.come(Request())
    desk.clock.now_s += 5.0
    third = desk.come(Request())
    desk.clock.now_s += 6.0
    desk.end(running)
    assert second.fault is not None
    assert third.pick is not None


def test_while_all_replicas_are_away_the_line_stands_and_then_goes_on() -> None:
    desk = Desk()
    running, second = desk.come(Request()), desk.come(Request())
    desk.is_away = True
    desk.end(running)
    assert second.place is not None
    desk.is_away = False
    desk.gate.refresh()
    assert second.pick is not None


def call(text: bytes, most_output_tokens: int | None, body: bytes = b"{}") -> Call:
    return Call(CHAT, "m", False, body, False, None, Chain((), CUTS, len(text)), most_output_tokens)


def test_more_output_than_the_model_has_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(RefusedError) as refused:
        Desk().fits(call(b"hi", 1001))
    fault = refused.value.fault
    assert (fault.status, fault.code, fault.param) == (400, "context_length_exceeded", "max_tokens")
    assert fault.message == "max_tokens is 1,001; 'm' takes 1,000 tokens together (prompt and output)"


def test_a_prompt_that_cannot_fit_by_any_count_is_refused_with_the_numbers() -> None:
    desk = Desk()
    long = b"x" * 64 * 600  # 600 tokens at the very least
    assert desk.fits(call(long, 400))
    with pytest.raises(RefusedError) as refused:
        desk.fits(call(long, 401))
    said = (
        "the prompt has 600 tokens or more and max_tokens is 401; 'm' takes 1,000 tokens together (prompt and output)"
    )
    assert refused.value.fault.message == said
    assert desk.fits(call(long, 401, b'{"messages":[{"content":[{"type":"image_url"}]}]}'))  # nobody knows
    assert desk.gate.desk("m").refused["too_large"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"input":["a","b"]}'),
        ("/v1/rerank", b'{"query":"a","documents":["b","c"]}'),
        ("/v1/completions", b'{"prompt":["a","b"]}'),
        ("/v1/completions", b'{"prompt":[[1,2],[3]]}'),
        ("/v1/chat/completions/batch", b'{"messages":[[],[]]}'),
        ("/v1/responses", b'{"input":"a","truncation":"auto"}'),
    ],
)
def test_of_several_prompts_together_or_one_that_is_cut_nobody_can_tell(path: str, body: bytes) -> None:
    together = Call(ENDPOINTS[path], "m", False, body, False, None, Chain((), CUTS, 64 * 1001), None)
    assert Desk().fits(together)


@pytest.mark.parametrize("body", [b'{"prompt":"a"}', b'{"prompt":["a"]}', b'{"prompt":[1,2]}', b'{"prompt":[[1,2]]}'])
def test_a_completion_of_one_prompt_is_refused_as_any(body: bytes) -> None:
    alone = Call(ENDPOINTS["/v1/completions"], "m", False, body, False, None, Chain((), CUTS, 64 * 1001), None)
    with pytest.raises(RefusedError, match="the prompt has 1,001 tokens or more"):
        Desk().fits(alone)


def test_how_much_of_a_text_is_embedded_is_no_output() -> None:
    cut = parse_call(ENDPOINTS["/v2/embed"], b'{"model":"m","texts":["a"],"max_tokens":1001}')
    assert isinstance(cut, Call)
    assert Desk().fits(cut)


def test_a_kv_cache_smaller_than_the_context_is_what_counts() -> None:
    desk = Desk()
    desk.replica.kv_capacity_tokens = 300
    desk.gate.refresh()
    with pytest.raises(RefusedError, match="takes 300 tokens"):
        desk.fits(call(b"hi", 301))


def test_headroom_is_what_would_still_be_served_in_time() -> None:
    desk = Desk(max_num_seqs=8)
    assert desk.gate.headroom("m") is None  # nothing is known of what requests are like
    for _ in range(5):
        desk.learn(prompt_tokens=60, output_tokens=40)
    assert desk.gate.headroom("m") == 8
    desk.replica.kv_capacity_tokens = 1000
    desk.gate.refresh()
    desk.come(Request(450))
    assert desk.gate.headroom("m") == 5  # (950 - 450) / 100
    for _ in range(20):
        desk.come(Request(100))
    assert desk.gate.headroom("m") == 0


class Crowd(RuleBasedStateMachine):
    """Requests before a gate, while time passes."""

    def __init__(self, gate: Gate, clock: HandClock) -> None:
        super().__init__()
        self.gate = gate
        self.clock = clock
        self.requests: list[Request] = []

    @rule(seconds=st.integers(0, 40))
    def wait(self, seconds: int) -> None:
        self.clock.now_s += seconds
        for request in self.waiting:
            if request.place is not None:
                fault = self.gate.check_time(request.place, self.clock.now_s)
                if fault is not None:
                    request.turned_away(fault)
        self.gate.refresh()

    @property
    def running(self) -> list[Request]:
        return [request for request in self.requests if request.pick is not None]

    @property
    def waiting(self) -> list[Request]:
        return [request for request in self.requests if request.place is not None]


class AnyDay(Crowd):
    """Requests of three callers come, leave, end, and time passes: every charge is given back, the line is bounded,
    and while there is room nobody stands in it."""

    def __init__(self) -> None:
        self.desk = Desk(Queue(max_waiting=4, max_wait_s=30.0), max_num_seqs=3)
        super().__init__(self.desk.gate, self.desk.clock)
        self.desk.replica.kv_capacity_tokens = 400
        self.gate.refresh()

    @rule(
        tokens=st.integers(0, 600), caller=st.sampled_from(["ann", "bob", "cy"]), priority=st.sampled_from(PRIORITIES)
    )
    def come(self, tokens: int, caller: str, priority: Priority) -> None:
        self.requests.append(self.desk.come(Request(tokens), caller, priority))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.desk.end(request)
        self.requests.remove(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        assert request.place is not None
        self.desk.gate.leave(request.place)
        self.requests.remove(request)
        self.desk.gate.refresh()

    @invariant()
    def counts_are_what_is_there(self) -> None:
        replica, line = self.desk.replica, self.desk.gate.desk("m").line
        assert replica.in_flight == len(self.running) <= 3
        assert replica.kv_tokens == sum(request.tokens for request in self.running)
        assert replica.kv_tokens <= 380 or len(self.running) == 1
        assert line.count == len(self.waiting) <= 4
        assert self.desk.gate.is_busy == bool(self.waiting)
        for request in self.requests:
            assert (request.pick is not None) + (request.place is not None) + (request.fault is not None) == 1

    @invariant()
    def nobody_waits_before_an_idle_replica(self) -> None:
        assert self.running or not self.waiting


TestAnyDay = AnyDay.TestCase


def test_where_a_prefix_is_counts_for_the_time_to_a_first_token_only() -> None:
    desk = Desk(slo=Slo(ttft_s=1.0), max_num_seqs=None)
    desk.replica.s_per_token = 0.001  # half a second: 500 tokens
    desk.gate.refresh()
    desk.come(Request(400))
    assert desk.gate.is_timed
    known = Route(Chain((), CUTS, 0), 1000, 0)
    assert not desk.gate.enter(call(b"", None), known, [desk.replica])
    known.cached_tokens = {desk.replica.slot: 950}
    assert desk.gate.enter(call(b"", None), known, [desk.replica]) == [desk.replica]
