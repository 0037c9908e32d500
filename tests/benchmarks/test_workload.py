import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.errors import ConfigError
from benchmarks.workload import NONCE_WORDS, WORDS, Prompt, build
from tests.benchmarks.making import patiently


def prompts(
    requests: int = 20, seed: int = 0, run_id: str = "a", prompt_tokens: int = 40, shared: int = 0
) -> list[str]:
    made = build(
        requests,
        prompt_tokens=prompt_tokens,
        output_tokens=5,
        shared_prefix_tokens=shared,
        seed=seed,
        run_id=run_id,
    )
    return [prompt.text for prompt in made]


def test_the_nonce_can_spell_every_byte() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 256


@patiently
@given(st.integers(1, 30), st.integers(), st.text(max_size=8), st.integers(0, 50), st.integers(NONCE_WORDS, 60))
def test_the_same_seed_and_run_give_the_same_bytes(
    requests: int, seed: int, run_id: str, shared: int, own: int
) -> None:
    texts = prompts(requests, seed, run_id, shared + own, shared)
    assert texts == prompts(requests, seed, run_id, shared + own, shared)
    assert len(texts) == requests
    assert {len(text.split(" ")) for text in texts} == {shared + own}


def test_no_two_prompts_begin_alike() -> None:
    beginnings = {" ".join(text.split()[:NONCE_WORDS]) for text in prompts(2000)}
    assert len(beginnings) == 2000


def test_another_run_of_the_same_seed_begins_otherwise() -> None:
    both = prompts(100, run_id="a") + prompts(100, run_id="b")
    assert len({" ".join(text.split()[:NONCE_WORDS]) for text in both}) == 200
    assert prompts(1, run_id="a", shared=30)[0].split()[:30] != prompts(1, run_id="b", shared=30)[0].split()[:30]


def test_a_shared_prefix_is_shared_and_nothing_after_it() -> None:
    texts = [text.split() for text in prompts(50, shared=24)]
    assert len({tuple(words[:24]) for words in texts}) == 1
    assert len({tuple(words[24 : 24 + NONCE_WORDS]) for words in texts}) == 50


def test_a_prompt_knows_what_was_asked() -> None:
    made = build(2, prompt_tokens=9, output_tokens=5, shared_prefix_tokens=0, seed=0, run_id="a")
    assert [(prompt.index, prompt.prompt_tokens, prompt.output_tokens) for prompt in made] == [(0, 9, 5), (1, 9, 5)]
    assert isinstance(made[0], Prompt)


def test_a_prompt_too_short_to_be_unique_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 18"):
        prompts(prompt_tokens=17, shared=10)
