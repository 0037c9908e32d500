"""How few tokens a prompt can have."""

from gateway.admission.fewest import Fewest


def test_before_enough_was_seen_sixty_four_bytes_may_be_one_token() -> None:
    fewest = Fewest()
    for _ in range(31):
        fewest.learn(1000, 250)
    assert fewest.tokens(6400) == 100


def test_then_a_fifth_of_the_fewest_ever_seen() -> None:
    fewest = Fewest()
    for _ in range(40):
        fewest.learn(1000, 250)
    assert fewest.tokens(10_000) == 500
    fewest.learn(1000, 100)
    assert fewest.tokens(10_000) == 200


def test_who_has_seen_prose_alone_does_not_say_what_is_untrue_of_a_log() -> None:
    """Measured with SmolLM2's vocabulary: prose has 0.217 tokens a byte, lines of ruling and blanks have 0.064."""
    fewest = Fewest()
    for _ in range(40):
        fewest.learn(5000, 1085)
    assert fewest.tokens(100_000) < 6400


def test_nor_who_has_seen_nothing_but_token_numbers_of_prose() -> None:
    fewest = Fewest()
    for _ in range(40):
        fewest.learn(5000, 5000)
    assert fewest.tokens(100_000) == 5000


def test_a_short_prompt_is_mostly_its_chat_template() -> None:
    fewest = Fewest()
    for _ in range(40):
        fewest.learn(10, 40)
    assert fewest.tokens(6400) == 100
