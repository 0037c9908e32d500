"""Each policy by its definition, with numbers worked by hand."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import CUTS, POLICIES, Chain, Load, Policy, Route, Router
from gateway.routing.policies import latency, least_work, prefix, round_robin, session


def load(
    name: str, *, queued: int = 0, output: int = 0, decoding: int = 0, share: float = 1.0, turn: float = 0
) -> Load:
    """One that computes 1000 prompt tokens a second, with a request of `queued` prompt tokens and `output` likely ones
    that waits there, and one that has its first token and `decoding` to go."""
    made = Load(name)
    made.s_per_token = 0.001
    made.use_share(share)
    if queued or output:
        made.take(queued, queued, output)
    if decoding:
        made.take(0, 0, decoding)
        made.prefilled(0, None)
    made.turn = turn
    return made


def asking(prompt_tokens: int, held: dict[int, int] | None = None, session: int | None = None) -> Route:
    """A request; `held` are the tokens that the load of each slot has of it."""
    route = Route(Chain((), CUTS, 0), prompt_tokens, 0, session)
    route.cached_tokens = held or {}
    return route


def slots(*loads: Load) -> list[Load]:
    """In a router's index from 0 on."""
    for slot, known in enumerate(loads):
        known.slot = slot
    return list(loads)


# round_robin
def test_round_robin_takes_turns_whatever_they_have_to_do() -> None:
    router: Router[Load] = Router(round_robin)
    loads = [load("a", queued=5000), load("b"), load("c")]
    assert [router.pick(asking(10), loads).load.name for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_round_robin_gives_a_tenth_to_a_share_of_a_tenth() -> None:
    router: Router[Load] = Router(round_robin)
    loads = [load("a"), load("b", share=0.1)]
    got = Counter(router.pick(asking(10), loads).load.name for _ in range(110))
    assert got == {"a": 100, "b": 10}


# least_work
def test_least_work_is_prompt_and_likely_output_in_flight() -> None:
    loads = [load("a", queued=100, output=60), load("b", queued=150), load("c", output=155)]
    assert least_work(asking(10), loads).name == "b"


def test_least_work_counts_by_share() -> None:
    loads = [load("a", queued=400), load("b", queued=100, share=0.1)]  # as much as 1000 for a whole one
    assert least_work(asking(10), loads).name == "a"


def test_least_work_among_equals_is_whose_turn_it_is() -> None:
    loads = [load("a", queued=50, turn=3), load("b", queued=50, turn=1), load("c", queued=50, turn=2)]
    assert least_work(asking(10), loads).name == "b"


# prefix
def test_prefix_goes_where_the_prefix_is() -> None:
    loads = slots(load("a"), load("b"))
    assert prefix(asking(1000, {1: 900}), loads).name == "b"  # 0.1 s, not 1 s


def test_prefix_leaves_it_when_the_wait_there_is_longer_than_computing_it_anew() -> None:
    """A queue is also a 32nd of itself in the KV cache."""
    loads = slots(load("a"), load("b", queued=700))
    assert prefix(asking(1000, {1: 900}), loads).name == "b"  # 0.7 + 0.022 + 0.1 s < 1.0 s
    loads = slots(load("a"), load("b", queued=1200))
    assert prefix(asking(1000, {1: 900}), loads).name == "a"  # 1.2 + 0.038 + 0.1 s > 1.0 s


@pytest.mark.parametrize(
    ("queued", "held", "used_ago", "expected"),
    [
        (10290, 900, 8, "b"),  # 10.61 + 0.1 s: a tenth and 2 ms less than 1.0 s + 12 x 0.9 s
        (10310, 900, 8, "a"),  # 10.63 + 0.1 s: not so
        (10290, 900, 1000, "b"),
        (1060, 100, 8, "b"),  # 1.09 + 0.9 s beside 1.0 s + 12 x 0.1 s: a ninth of the prefix, a ninth of the patience
        (1070, 100, 8, "a"),
        (3155, 900, 4, "b"),  # used twice as lately, a quarter: 3.25 + 0.1 s beside 1.0 s + 3 x 0.9 s
        (3170, 900, 4, "a"),
        (925, 900, 1, "b"),  # each of them will need it: 0.95 + 0.1 s beside 1.0 s + 0.19 x 0.9 s
        (935, 900, 1, "a"),
    ],
)
def test_prefix_waits_rather_than_have_a_second_copy(queued: int, held: int, used_ago: int, expected: str) -> None:
    asked = asking(1000, {1: held})
    asked.used_ago = used_ago
    assert prefix(asked, slots(load("a"), load("b", queued=queued))).name == expected


def test_prefix_counts_only_what_somebody_else_holds_as_a_copy() -> None:
    """Of two that hold some of it, the one that lacks 100 tokens of what there is costs 1.2 s more for them."""
    asked = asking(1000, {0: 400, 1: 500})
    asked.used_ago = 8
    assert prefix(asked, slots(load("a"), load("b", queued=1090))).name == "b"  # 1.12 + 0.5 s beside 0.6 + 1.2 s
    assert prefix(asked, slots(load("a"), load("b", queued=1200))).name == "a"  # 1.24 + 0.5 s: within a tenth


@pytest.mark.parametrize(("queued", "expected"), [(700, "b"), (850, "a")])
def test_prefix_pushes_out_what_was_used_longest_ago(queued: int, expected: str) -> None:
    """At a, each token to compute counts twice: 2.0 s, beside 1.72 s, and 1.88 s, which is the same within a tenth."""
    loads = slots(load("a"), load("b", queued=queued))
    loads[0].own_weight = 2.0
    assert prefix(asking(1000), loads).name == expected


def test_prefix_counts_half_of_the_likely_output() -> None:
    loads = slots(load("a", decoding=1000), load("b", queued=600))
    assert prefix(asking(100), loads).name == "a"  # 0.5 + 0.1 s against 0.6 + 0.1 s


@pytest.mark.parametrize(("queued", "expected"), [(90, "b"), (150, "a")])
def test_prefix_takes_waits_within_a_tenth_for_equal(queued: int, expected: str) -> None:
    """b waits for `queued` more; up to 1.1 x 1.0 s + 2 ms it is as good, and has less work in flight."""
    first = load("a")
    first.take(0, 0, 0)
    first.work_tokens = 500  # computed already, not a reason to wait
    loads = slots(first, load("b", queued=queued))
    assert prefix(asking(1000), loads).name == expected


def test_prefix_knows_a_slow_replica() -> None:
    loads = slots(load("a"), load("b", queued=700))
    loads[0].s_per_token = 0.002
    loads[0].use_share(1.0)
    assert prefix(asking(1000), loads).name == "b"  # 1.7 s against 2.0 s


def test_prefix_knows_a_share() -> None:
    loads = slots(load("a", share=0.1), load("b", queued=5000))
    assert prefix(asking(1000), loads).name == "b"  # 6 s against 1 s / 0.1
    loads = slots(load("a", share=0.1), load("b", queued=9500))
    assert prefix(asking(1000), loads).name == "a"


def test_prefix_spreads_what_nobody_has() -> None:
    router: Router[Load] = Router(prefix)
    loads = [load("a"), load("b"), load("c")]
    got = Counter(router.pick(asking(500), loads).load.name for _ in range(30))
    assert got == {"a": 10, "b": 10, "c": 10}


def test_prefix_of_a_provider_elsewhere_counts_for_nothing() -> None:
    """It has no slot, and -1 is nobody's."""
    assert prefix(asking(1000, {0: 900}), [load("remote")]).name == "remote"


# session
def test_session_is_always_the_same_one() -> None:
    loads = [load(name) for name in "abcd"]
    for key in (0, 1, 2**64 - 1):
        assert len({session(asking(10, session=key), order).name for order in (loads, loads[::-1])}) == 1


def test_sessions_are_spread() -> None:
    loads = [load(name) for name in "abcd"]
    got = Counter(session(asking(10, session=key), loads).name for key in range(4000))
    assert all(900 < count < 1100 for count in got.values())


def test_of_sessions_only_those_move_whose_replica_is_gone() -> None:
    loads = [load(name) for name in "abcd"]
    for key in range(200):
        before = session(asking(10, session=key), loads)
        after = session(asking(10, session=key), [other for other in loads if other.name != "b"])
        assert after is before or before.name == "b"


def test_session_leaves_one_that_has_far_more_than_the_mean() -> None:
    loads = [load(name) for name in "abcd"]
    home = session(asking(10, session=7), loads)
    home.take(2900, 2900, 0)  # mean 725: up to 1.25 x 725 + 2000 = 2906
    assert session(asking(10, session=7), loads) is home
    home.take(20, 20, 0)  # 2920, mean 730: up to 2912
    assert session(asking(10, session=7), loads) is not home


def test_session_gives_a_tenth_to_a_share_of_a_tenth() -> None:
    loads = [load(name) for name in "abcd"]
    home = session(asking(10, session=7), loads)
    home.use_share(0.1)
    home.take(200, 200, 0)  # mean 50: up to (1.25 x 50 + 2000) / 10 = 206
    assert session(asking(10, session=7), loads) is home
    home.take(10, 10, 0)
    assert session(asking(10, session=7), loads) is not home


def test_without_a_session_it_is_the_least_work() -> None:
    assert session(asking(10), [load("a", queued=20), load("b", queued=10)]).name == "b"


# latency
def test_latency_is_the_recent_ttft_for_each_that_waits() -> None:
    quick, slow = load("a", queued=10), load("b")
    quick.ttft_s, slow.ttft_s = 0.2, 0.5
    assert latency(asking(10), [quick, slow]).name == "a"  # 2 x 0.2 s
    quick.take(10, 10, 0)
    assert latency(asking(10), [quick, slow]).name == "b"  # 3 x 0.2 s


def test_latency_tries_first_what_it_does_not_know() -> None:
    known, unknown = load("a"), load("b", queued=100)
    known.ttft_s = 0.001
    assert latency(asking(10), [known, unknown]).name == "b"


def test_latency_counts_by_share() -> None:
    quick, slow = load("a", share=0.1), load("b")
    quick.ttft_s, slow.ttft_s = 0.2, 0.5
    assert latency(asking(10), [quick, slow]).name == "b"


def test_latency_believes_half_of_what_was_true_100_requests_ago() -> None:
    """0.1 s against 0.75 s: after 300 requests to others an eighth of that, 0.094 s, is left."""
    quick, slow = load("a"), load("b")
    quick.ttft_s, slow.ttft_s = 0.1, 0.75
    quick.tick = 280  # 0.108 s
    assert latency(asking(10), [quick, slow]).name == "a"
    quick.tick = 300
    assert latency(asking(10), [quick, slow]).name == "b"


def test_latency_keeps_trying_one_that_was_slow_once_but_seldom() -> None:
    router: Router[Load] = Router(latency)
    loads = [load("a"), load("b")]
    loads[0].ttft_s, loads[1].ttft_s = 0.1, 5.0
    before = [made.picks for made in loads]
    for _ in range(10_000):
        pick = router.pick(asking(10), loads)
        pick.first_token(0.1 if pick.load is loads[0] else 5.0)
        pick.release()
    assert 10 <= loads[1].picks - before[1] <= 30  # 50 times as slow: once in about 100 x log2(50) = 560


def test_the_ttft_is_a_mean_of_which_the_newest_is_a_tenth() -> None:
    known = load("a")
    for ttft_s in (1.0, 2.0):
        known.take(0, 0, 0)
        known.prefilled(0, ttft_s)
    assert known.ttft_s == pytest.approx(1.1)


# All of them
def state(made: Load) -> dict[str, object]:
    """Everything that anybody can see of it."""
    found = {name: getattr(made, name) for name in dir(made) if not name.startswith("_")}
    return {name: value for name, value in found.items() if not callable(value)}


@pytest.mark.parametrize("name", POLICIES)
@given(
    data=st.data(),
    busy=st.lists(
        st.tuples(
            st.integers(0, 50_000),
            st.integers(0, 50_000),
            st.floats(0.01, 1.0),
            st.floats(0, 1000),
            st.none() | st.floats(0.001, 100),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_it_chooses_a_candidate_and_changes_nothing(name: Any, data: st.DataObject, busy: list[Any]) -> None:
    loads = slots(
        *(load(f"r{i}", queued=q, output=o, share=s, turn=t) for i, (q, o, s, t, _) in enumerate(busy)),
    )
    for made, (*_, ttft_s) in zip(loads, busy, strict=True):
        made.ttft_s = ttft_s
    prompt = data.draw(st.integers(0, 10_000))
    held = data.draw(st.dictionaries(st.sampled_from(range(len(loads))), st.integers(0, max(prompt - 1, 0))))
    asked = asking(prompt, held, data.draw(st.none() | st.integers(0, 2**64 - 1)))
    before = [state(made) for made in loads]
    policy: Policy[Load] = POLICIES[name]
    first = policy(asked, loads)
    assert any(first is made for made in loads)
    assert policy(asked, loads) is first
    assert [state(made) for made in loads] == before


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "session"])
@given(count=st.integers(2, 8), prompt=st.integers(1, 400), output=st.integers(0, 100), cached=st.booleans())
def test_it_leaves_nobody_idle_while_requests_pile_up(
    name: Any, count: int, prompt: int, output: int, cached: bool
) -> None:
    """Nothing is ever answered: after enough of them everybody has one, even if the first has the whole prefix."""
    router: Router[Load] = Router(POLICIES[name])
    loads = [load(f"r{i}") for i in range(count)]
    for made in loads:
        router.add(made)
    chain = Chain((1,), (prompt,), prompt) if cached else Chain((), CUTS, prompt)
    for _ in range(prompt * count + 1):
        router.pick(Route(chain, prompt, output), loads)
        if all(made.picks for made in loads):
            break
    assert all(made.picks for made in loads)


@given(keys=st.integers(1, 10), count=st.integers(1, 300))
def test_sessions_are_no_excuse_for_far_more_than_the_mean(keys: int, count: int) -> None:
    router: Router[Load] = Router(session)
    loads = [load(f"r{i}") for i in range(6)]
    for i in range(count):
        router.pick(asking(1000, session=i % keys), loads)
    assert max(made.work_tokens for made in loads) <= 1.25 * 1000 * count / 6 + 2000 + 1000
