from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.alignment import token_counts

# /tokenize of SmolLM2 for one user message, asked of vLLM 0.32 with return_token_strs
RECORDED = [
    "<|im_start|>", "user", "Ċ", "H", "Ã©", "llo", "Ġw", "Ã¶r", "ld", ",", "ĊĊĠ", "Ġx", "Ġæ", "¼", "¢", "åŃĹ",
    "<|im_end|>", "Ċ",
]  # fmt: skip
LINE = "the quick brown fox jumps over the lazy dog and "
WORDS = ["the", "Ġquick", "Ġbrown", "Ġfox", "Ġjumps", "Ġover", "Ġthe", "Ġlazy", "Ġdog", "Ġand", "Ġ"]


def test_the_same_text_has_its_ends_at_the_same_places() -> None:
    text = "<|im_start|>user\nHéllo wörld,\n\n  x 漢字<|im_end|>\n".encode()
    # behind "Héllo wörld," come spaces, and what they join depends on what follows; then x, whose own space is cut too
    assert token_counts(text, [len("<|im_start|>user\nHéllo wörld,\n".encode())], RECORDED) == [10]
    assert token_counts(text, [len("<|im_start|>user\nHéllo wörld,\n\n  x".encode())], RECORDED) == [10]
    assert token_counts(text, [len(text)], RECORDED) == [len(RECORDED) - 1]


def test_the_word_before_an_end_is_left_out() -> None:
    """10: "the quick"; 12: "the quick br"; both may go on otherwise."""
    assert token_counts(LINE.encode(), [9, 12, 15], WORDS) == [1, 2, 2]


def test_what_the_template_puts_between_is_passed_over() -> None:
    text = ("user:" + LINE + "assistant:" + LINE.upper()).encode()
    upper = [word.upper() for word in WORDS]
    pieces = ["<s>", "[INST]", *WORDS, "[/INST]", *upper]
    first, second = len("user:" + LINE), len(text)
    assert token_counts(text, [first, second], pieces) == [2 + 10, 2 + 11 + 1 + 10]


def test_what_is_there_twice_is_not_a_place() -> None:
    pieces = ["<s>", *WORDS, *WORDS]
    assert token_counts(("user:" + LINE).encode(), [len("user:" + LINE)], pieces) == [None]


def test_what_is_not_there_is_none_either_and_what_follows_is_found_again() -> None:
    text = ("user:" + LINE.replace("fox", "cat") + "more:" + LINE).encode()
    ends = [len("user:" + LINE), len(text)]
    assert token_counts(text, ends, ["<s>", *WORDS]) == [None, 11]


def test_an_end_near_a_seam_has_too_little_to_be_found_by() -> None:
    text = ("user:" + LINE).encode()
    assert token_counts(text, [5, 20, len(text)], ["<s>", *WORDS]) == [None, None, 11]


def test_sentencepiece_spells_spaces_and_bytes() -> None:
    pieces = ["<s>", "▁the", "▁quick", "▁br", "own", "<0x0A>", "▁fox"]
    assert token_counts(b"<s> the quick brown\n fox", [len(b"<s> the quick brown\n f")], pieces) == [5]


def test_long_words_are_cut_well_before_the_end() -> None:
    pieces = ["<s>", *["x" * 8] * 40]
    assert token_counts(b"<s>" + b"x" * 320, [3 + 320], pieces) == [1 + (320 - 64) // 8]


@given(st.lists(st.sampled_from(["Ġred", "Ġgreen", "Ġblue", "Ċ", "Ġa", "b", "Ã©"]), max_size=40), st.data())
def test_never_more_tokens_than_lie_before_the_end(pieces: list[str], data: st.DataObject) -> None:
    spelt = [piece.replace("Ġ", " ").replace("Ċ", "\n").replace("Ã©", "é").encode() for piece in pieces]
    text = b"".join(spelt)
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    sizes = list(accumulate(map(len, spelt), initial=0))
    for end, count in zip(ends, token_counts(text, ends, pieces), strict=True):
        assert count is not None
        assert sizes[count] <= end
