"""The order of the line: by priority, in fairness, within bounds, and nobody stands in it for ever."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.admission.line import PRIORITIES, Asker, Line, Place, Priority, Return
from tests.gateway.placing import route

ROOMY = 10**9


def place(name: str, caller: str, tokens: int = 10, priority: Priority = "normal", since_s: float = 0.0) -> Place[str]:
    """A request with its own name as the one who waits."""
    return Place(name, Asker(caller, priority), "m", route(tokens), since_s, since_s + 60)


def served(line: Line[str]) -> list[str]:
    """All that are in line, in the order in which they are served."""
    order = []
    while (first := line.first()) is not None:
        line.take(first)
        order.append(first.waiter)
    return order


def line_of(*places: Place[str], most: int = ROOMY, most_tokens: int = ROOMY) -> Line[str]:
    line: Line[str] = Line(most, most_tokens)
    for one in places:
        assert line.join(one).is_in
    return line


def test_one_caller_is_served_in_the_order_it_came() -> None:
    assert served(line_of(place("1", "a", 50), place("2", "a", 10), place("3", "a", 30))) == ["1", "2", "3"]


def test_a_caller_with_much_in_line_does_not_keep_the_others_waiting() -> None:
    line = line_of(*(place(f"greedy {i}", "greedy") for i in range(5)), place("modest", "modest"))
    assert served(line)[:3] == ["greedy 0", "modest", "greedy 1"]


def test_callers_share_by_tokens_not_by_requests() -> None:
    large = [place(f"L{i}", "large", 30) for i in range(2)]
    small = [place(f"s{i}", "small", 10) for i in range(6)]
    # after L0 (30 tokens) the other caller has three of ten, then both are even again
    assert served(line_of(*large, *small)) == ["L0", "s0", "s1", "s2", "L1", "s3", "s4", "s5"]


def test_what_a_caller_did_not_use_is_not_saved_up() -> None:
    line = line_of(*(place(f"a{i}", "a") for i in range(6)))
    for _ in range(4):
        first = line.first()
        assert first is not None
        line.take(first)
    for i in range(4):  # b was away while a had 40 tokens: it does not get four turns for that
        line.join(place(f"b{i}", "b"))
    assert served(line)[:4] == ["b0", "a4", "b1", "a5"]


def test_higher_priorities_go_first() -> None:
    line = line_of(place("low", "a", priority="low"), place("normal", "b"), place("high", "c", priority="high"))
    assert served(line) == ["high", "normal", "low"]


def test_after_eight_in_a_row_it_is_the_turn_of_whoever_waits_longest_below() -> None:
    line = line_of(
        place("low", "a", priority="low", since_s=1.0),
        place("normal", "a", since_s=2.0),
        *(place(f"h{i}", "b", priority="high") for i in range(20)),
    )
    order = served(line)
    assert order[:8] == [f"h{i}" for i in range(8)]
    assert (order[8], order[17]) == ("low", "normal")


def test_a_full_line_has_no_place_for_somebody_who_would_be_served_last() -> None:
    line = line_of(place("1", "a"), place("2", "a"), most=2)
    assert not line.join(place("3", "a")).is_in
    assert served(line) == ["1", "2"]


def test_a_full_line_makes_room_for_another_caller_and_a_higher_priority() -> None:
    line = line_of(place("1", "a"), place("2", "a"), place("3", "a"), most=3)
    joined = line.join(place("b", "b"))
    assert (joined.is_in, [out.waiter for out in joined.pushed_out]) == (True, ["3"])
    joined = line.join(place("urgent", "a", priority="high"))
    assert (joined.is_in, [out.waiter for out in joined.pushed_out]) == (True, ["2"])
    assert served(line) == ["urgent", "1", "b"]


def test_tokens_are_bounded_too_and_nobody_leaves_for_one_who_does_not_get_in() -> None:
    line = line_of(place("1", "a", 40), place("2", "a", 40), most_tokens=100)
    assert not line.join(place("huge", "b", 101)).is_in
    assert (line.count, line.tokens) == (2, 80)
    assert served(line) == ["1", "2"]


def test_what_is_ahead_of_a_newcomer_is_its_own_and_as_much_of_each_other_caller() -> None:
    line = line_of(*(place(f"a{i}", "a", 10) for i in range(10)), place("h", "c", 7, priority="high"))
    assert line.tokens_ahead(Asker("b"), 20) == 7 + 20  # of a's 100 tokens only as many as b asks for
    assert line.tokens_ahead(Asker("a"), 20) == 7 + 100
    assert line.tokens_ahead(Asker("b", "high"), 20) == 7
    assert line.tokens_ahead(Asker("b", "low"), 20) == 7 + 100


def test_who_leaves_does_not_cost_its_caller_a_turn() -> None:
    gone = place("gone", "a", 1000)
    line = line_of(gone, place("a", "a"), place("b0", "b"), place("b1", "b"))
    line.leave(gone)
    assert served(line) == ["a", "b0", "b1"]


def test_who_is_back_counts_but_takes_nobodys_place() -> None:
    line = line_of(place("1", "a", 40), place("2", "a", 40, "low"), most=2, most_tokens=100)
    back = Place("back", Asker("b"), "m", route(70), 0.0, 60.0, Return(is_streaming=False, arrived_s=0.0))
    assert line.join(back) == (True, ())
    assert (line.count, line.tokens, line.waiting("normal"), line.waiting("low")) == (3, 150, 2, 1)
    assert line.tokens_ahead(Asker("c", "high"), 10) == 70
    assert not line.join(place("3", "a", priority="low")).is_in
    line.take(back)
    assert (line.count, line.tokens, line.returned) == (2, 80, [])
    assert served(line) == ["1", "2"]


class AnyLine(RuleBasedStateMachine):
    """Requests of three callers come, leave and are served in any order: the line stays within bounds, counts what is
    there, and forgets nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.line: Line[str] = Line(most=8, most_tokens=400)
        self.there: list[Place[str]] = []

    @rule(caller=st.sampled_from("abc"), tokens=st.integers(1, 450), priority=st.sampled_from(PRIORITIES))
    def join(self, caller: str, tokens: int, priority: Priority) -> None:
        newcomer = place("x", caller, tokens, priority)
        assert self.line.tokens_ahead(Asker(caller, priority), tokens) <= self.line.tokens
        joined = self.line.join(newcomer)
        for out in joined.pushed_out:
            self.there.remove(out)
            assert PRIORITIES.index(out.priority) >= PRIORITIES.index(priority)
        if joined.is_in:
            self.there.append(newcomer)
        else:
            assert len(self.there) == 8 or sum(one.tokens for one in self.there) + tokens > 400

    @precondition(lambda self: self.there)
    @rule()
    def take(self) -> None:
        first = self.line.first()
        assert first is not None
        self.line.take(first)
        self.there.remove(first)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = self.there.pop(data.draw(st.integers(0, len(self.there) - 1)))
        self.line.leave(gone)

    @invariant()
    def counts_what_is_there(self) -> None:
        assert self.line.count == len(self.there) <= 8
        assert self.line.tokens == sum(one.tokens for one in self.there) <= 400
        assert (self.line.first() is None) == (not self.there)
        for priority in PRIORITIES:
            assert self.line.waiting(priority) == sum(one.priority == priority for one in self.there)


TestAnyLine = AnyLine.TestCase


@given(
    priority=st.sampled_from(PRIORITIES),
    before=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(PRIORITIES), st.integers(1, 100)), max_size=20),
    after=st.tuples(st.sampled_from("bc"), st.sampled_from(PRIORITIES), st.integers(1, 100)),
)
def test_nobody_waits_for_ever_whoever_keeps_coming(
    priority: Priority, before: list[tuple[str, Priority, int]], after: tuple[str, Priority, int]
) -> None:
    line = line_of(*(place("before", *_args(one)) for one in before), place("us", "a", 100, priority))
    for turn in range(2000):
        first = line.first()
        assert first is not None
        line.take(first)
        if first.waiter == "us":
            return
        line.join(place("after", *_args(after), since_s=turn + 1.0))  # for each that is served another one comes
    raise AssertionError("still waiting")


def _args(one: tuple[str, Priority, int]) -> tuple[str, int, Priority]:
    return one[0], one[2], one[1]
