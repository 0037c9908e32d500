"""A prompt as block hashes: where it is cut, and that equal hashes are equal prefixes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import CUTS, Chain, chain_of
from gateway.routing.chain import of_model

TEXTS = st.binary(max_size=3000) | st.builds(
    lambda piece, times, tail: piece * times + tail,
    st.binary(min_size=1, max_size=9),
    st.integers(0, 3000),
    st.binary(),
)
SEEDS = st.integers(0, 2**64 - 1)


def test_where_it_is_cut() -> None:
    assert CUTS[:18] == (*range(256, 4097, 256), 4608, 5120)
    assert (CUTS[23], CUTS[31], CUTS[39], CUTS[47]) == (8192, 16384, 32768, 65536)


def test_steps_are_an_eighth_of_what_is_before_and_8_kib_at_most() -> None:
    steps = [after - before for before, after in pairwise(CUTS)]
    assert all(step <= max(256, before // 8) for before, step in zip(CUTS, steps, strict=False))
    assert max(steps) == 8192
    assert CUTS[-1] >= 64 * 2**20


def test_32k_tokens_are_56_blocks() -> None:
    assert len(chain_of(1, b"x" * 128 * 1024).hashes) == 56


def test_a_block_has_a_hash_once_it_is_full() -> None:
    assert chain_of(1, b"x" * 255) == Chain((), CUTS, 255)
    assert len(chain_of(1, b"x" * 256).hashes) == 1
    assert len(chain_of(1, b"x" * 511).hashes) == 1
    assert chain_of(1, b"").size == 0


def test_a_block_stands_for_all_before_it() -> None:
    one, other = chain_of(1, b"a" * 256 + b"x" * 1000), chain_of(1, b"b" * 256 + b"x" * 1000)
    assert not set(one.hashes) & set(other.hashes)


def test_the_seed_comes_before_the_text() -> None:
    one, other = chain_of(1, b"a" * 1000), chain_of(2, b"a" * 1000)
    assert not set(one.hashes) & set(other.hashes)


@given(TEXTS, TEXTS, SEEDS)
def test_a_longer_text_has_the_blocks_of_what_it_begins_with(text: bytes, more: bytes, seed: int) -> None:
    short, long = chain_of(seed, text), chain_of(seed, text + more)
    assert long.hashes[: len(short.hashes)] == short.hashes
    assert long.size == len(text + more)


@given(TEXTS, TEXTS, TEXTS, SEEDS)
def test_equal_hashes_are_equal_prefixes(common: bytes, one: bytes, other: bytes, seed: int) -> None:
    first, second = chain_of(seed, common + one), chain_of(seed, common + other)
    for i, (a, b) in enumerate(zip(first.hashes, second.hashes, strict=False)):
        assert (a == b) == ((common + one)[: CUTS[i]] == (common + other)[: CUTS[i]])


@given(TEXTS, SEEDS)
def test_every_full_block_and_no_other(text: bytes, seed: int) -> None:
    chain = chain_of(seed, text)
    assert len(chain.hashes) == sum(end <= len(text) for end in CUTS)
    assert len(set(chain.hashes)) == len(chain.hashes)


@given(TEXTS, TEXTS, SEEDS)
def test_for_another_model_it_has_nothing_in_common_and_is_as_it_was_in_itself(
    text: bytes, more: bytes, seed: int
) -> None:
    short, long = chain_of(seed, text), chain_of(seed, text + more)
    moved = of_model(short, "m")
    assert not set(moved.hashes) & set(long.hashes)
    assert not set(moved.hashes) & set(of_model(short, "n").hashes)
    assert of_model(long, "m").hashes[: len(short.hashes)] == moved.hashes
    assert (moved.ends, moved.size) == (short.ends, short.size)
    assert all(0 <= value < 2**64 for value in moved.hashes)
