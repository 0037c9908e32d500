"""The oracle of the replay, and its table, by numbers worked by hand."""

import pytest

from benchmarks.routing_replay import Turn, oracle_tokens, row, table


def _turn(sent_s: float, prompt: str, answer: str = "", *, took_s: float = 1.0, **known: object) -> Turn:
    """One letter is one token; its first token comes after half of `took_s`."""
    turn = Turn(0, [], sent_s=sent_s, first_s=sent_s + took_s / 2, done_s=sent_s + took_s)
    turn.prompt_ids, turn.told_ids = tuple(prompt.encode()), tuple((prompt + answer).encode())
    turn.prompt_tokens = len(prompt)
    for name, value in known.items():
        setattr(turn, name, value)
    return turn


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        ([_turn(0, "aabbcc")], 0),
        ([_turn(0, "aabb"), _turn(2, "aabbcc")], 4),
        ([_turn(0, "aabb"), _turn(2, "aabb")], 2),  # the last token is always computed: its block is not found
        ([_turn(0, "aabb"), _turn(2, "xxbb")], 0),  # a prefix begins at the beginning
        ([_turn(0, "aabb"), _turn(0.4, "aabbcc")], 0),  # not yet computed
        ([_turn(0, "aabb"), _turn(0.5, "aabbcc")], 4),  # its first token is out
        ([_turn(0, "aab", "b"), _turn(0.9, "aabbcc")], 2),  # the answer is not complete
        ([_turn(0, "aab", "b"), _turn(1.0, "aabbcc")], 4),
        ([_turn(0, "aabb"), _turn(0, "ccdd"), _turn(2, "ccddee"), _turn(2, "aabbee")], 8),  # wherever they went
    ],
)
def test_the_oracle_has_whole_blocks_of_what_was_computed_before(turns: list[Turn], found: int) -> None:
    assert oracle_tokens(turns, block_tokens=2) == found


def test_a_row_and_its_line() -> None:
    turns = [
        _turn(0, "aabbcc", replica="e0"),
        _turn(2, "aabbcc", replica="e0", cached_tokens=4, predicted_tokens=2, took_s=0.2),
        _turn(2, "ddeeff", replica="e1", took_s=3.0),
        _turn(3, "gg", replica="e1", error="500: no"),
    ]
    found = row("prefix", turns, block_tokens=2, replicas=2, output_tokens=4)
    assert (found.turns, found.errors) == (4, 1)
    assert (found.hit_share, found.oracle_share, found.predicted_share) == (4 / 18, 4 / 18, 2 / 18)
    assert found.ttft_p50_s == pytest.approx(0.5)
    assert found.max_over_mean == 16 / 13  # 6 + 4 and 2 + 4 tokens on one, 6 + 4 on the other
    assert table([found])[1].split()[:6] == ["prefix", "4", "1", "22.2", "22.2", "100.0"]


def test_what_others_are_compared_with() -> None:
    both = [_turn(0, "aabb", replica="e0", took_s=4.0), _turn(9, "aabb", replica="e0", took_s=4.0, cached_tokens=2)]
    half = [_turn(0, "aabb", replica="e0", took_s=1.0), _turn(9, "aabb", replica="e0", took_s=1.0, cached_tokens=2)]
    rows = [row(name, turns, 2, 2, 4) for name, turns in (("round_robin", both), ("prefix", half))]
    assert table(rows)[-1] == "TTFT p90 of prefix: 0.25 of round robin's"
