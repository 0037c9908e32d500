"""Memory that a card shares with its processor: KV bytes instead of a share, and a band as wide as its logs."""

import pytest

from sizing.gpu import GIB, gpu
from sizing.options import options
from sizing.plan import answer
from sizing.question import Question
from tests.sizing.models import published

QUESTION = Question(published("Qwen/Qwen3-8B"), gpu("GB10"), max_model_len=32_768)


def test_an_answer_gives_the_bytes_that_a_plan_gives() -> None:
    found = answer(QUESTION)
    best = options(QUESTION, [gpu("GB10")]).best
    assert best is not None
    assert found.settings.kv_cache_memory_bytes is not None
    assert found.settings == best.answer.settings
    # a tenth is the system's
    assert found.claimed_bytes < 0.9 * gpu("GB10").memory_bytes


def test_a_share_that_was_asked_for_stands() -> None:
    asked = Question(QUESTION.model, QUESTION.device, max_model_len=32_768, gpu_memory_utilization=0.6)
    found = answer(asked)
    assert found.settings.gpu_memory_utilization == 0.6
    assert found.settings.kv_cache_memory_bytes is None


@pytest.mark.parametrize("taken_gib", [1.5, 2.1, 2.7])
def test_the_band_holds_what_was_logged_beside_the_other_terms(taken_gib: float) -> None:
    (term,) = [term for term in answer(QUESTION).terms if term.name == "non-torch"]
    assert term.low_bytes < taken_gib * GIB < term.high_bytes
    assert "shares" in term.why
