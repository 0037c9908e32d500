"""Each fate by an example, and that they sum to the prompt."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.fate import Expected, Fate, fates

TOKENS = st.integers(0, 10_000)
LOSSES: st.SearchStrategy[Fate] = st.sampled_from(["evicted", "restarted", "no_reuse"])


def test_found_where_it_was_expected() -> None:
    assert fates(Expected(800, 800, 800, "evicted"), 1000, 800, "no_reuse") == {"hit": 800, "no_reuse": 200}


def test_nobody_had_seen_it() -> None:
    assert fates(Expected(0, 0, 0, "evicted"), 1000, 0, "no_reuse") == {"no_reuse": 1000}


def test_another_one_had_more_of_it() -> None:
    found = fates(Expected(100, 600, 600, "evicted"), 1000, 96, "no_reuse")
    assert found == {"hit": 96, "no_reuse": 4 + 400, "routed_elsewhere": 500}


def test_it_was_pushed_out() -> None:
    assert fates(Expected(0, 0, 700, "evicted"), 1000, 0, "no_reuse") == {"evicted": 700, "no_reuse": 300}


def test_the_replica_turns_out_to_have_lost_all() -> None:
    assert fates(Expected(500, 500, 500, "evicted"), 1000, 0, "restarted") == {"restarted": 500, "no_reuse": 500}


def test_all_of_them_in_one_prompt() -> None:
    found = fates(Expected(300, 500, 700, "restarted"), 1000, 200, "evicted")
    assert found == {"hit": 200, "evicted": 100, "routed_elsewhere": 200, "restarted": 200, "no_reuse": 300}


def test_more_was_there_than_anybody_thought() -> None:
    assert fates(Expected(0, 0, 0, "evicted"), 1000, 640, "no_reuse") == {"hit": 640, "no_reuse": 360}


def test_a_prompt_that_was_estimated_too_long_was_expected_in_proportion() -> None:
    assert Expected(400, 600, 800, "evicted").of(500, 1000) == Expected(200, 300, 400, "evicted")
    assert Expected(0, 0, 0, "evicted").of(7, 0) == Expected(0, 0, 0, "evicted")


@given(here=TOKENS, more=TOKENS, once=TOKENS, prompt=TOKENS, cached=st.integers(-5, 20_000), loss=LOSSES)
def test_they_sum_to_the_prompt(here: int, more: int, once: int, prompt: int, cached: int, loss: Fate) -> None:
    found = fates(Expected(here, here + more, here + more + once, "evicted"), prompt, cached, loss)
    assert sum(found.values()) == prompt
    assert all(tokens > 0 for tokens in found.values())
    assert found.get("hit", 0) == min(max(cached, 0), prompt)
