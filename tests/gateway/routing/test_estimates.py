"""What a request is likely to cost, learnt by model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import Estimates


def test_before_any_answer() -> None:
    estimate = Estimates().of("m")
    assert estimate.tokens_per_unit == 0.25
    assert estimate.likely_output(None) == 257
    assert estimate.likely_output(16) == 16


def test_the_first_answers_make_a_plain_mean() -> None:
    estimate = Estimates().of("m")
    estimate.learn(1000, 500, 56)
    assert (estimate.tokens_per_unit, estimate.likely_output(None)) == (0.5, 57)
    estimate.learn(1000, 300, 16)
    assert estimate.tokens_per_unit == pytest.approx(0.4)
    assert estimate.likely_output(None) == 37


def test_from_the_fiftieth_on_an_answer_moves_it_by_a_fiftieth() -> None:
    estimate = Estimates().of("m")
    for _ in range(100):
        estimate.learn(1000, 500, 100)
    estimate.learn(1000, 250, 200)
    assert estimate.tokens_per_unit == pytest.approx(0.5 - 0.25 / 50)
    assert estimate.output_tokens == pytest.approx(100 + 100 / 50)


@pytest.mark.parametrize(("units", "prompt_tokens"), [(63, 60), (0, 10), (1000, 0)])
def test_short_prompts_say_nothing_of_their_text(units: int, prompt_tokens: int) -> None:
    estimate = Estimates().of("m")
    estimate.learn(units, prompt_tokens, None)
    assert estimate.tokens_per_unit == 0.25
    assert estimate.output_tokens == 256


def test_a_unit_is_no_more_than_a_token() -> None:
    """What has more tokens than bytes has something in its prompt that is not in its text: a picture, what a chat
    template adds, a conversation that the engine keeps."""
    estimate = Estimates().of("m")
    for _ in range(1000):
        estimate.learn(100, 100_000, None)
    assert 0.9 < estimate.tokens_per_unit <= 1


def test_each_model_has_its_own() -> None:
    estimates = Estimates()
    estimates.of("a").learn(1000, 900, 5000)
    assert estimates.of("a").tokens_per_unit > estimates.of("b").tokens_per_unit
    assert estimates.of("a") is estimates.of("a")


@given(
    st.lists(st.tuples(st.integers(0, 2**63), st.integers(-(2**63), 2**63), st.none() | st.integers(-(2**63), 2**63)))
)
def test_nothing_that_an_engine_says_makes_it_nonsense(answers: list[tuple[int, int, int | None]]) -> None:
    estimate = Estimates().of("m")
    for answer in answers:
        estimate.learn(*answer)
    assert 0 < estimate.tokens_per_unit <= 1
    assert estimate.likely_output(None) >= 1
    assert 1 <= estimate.likely_output(7) <= 7
