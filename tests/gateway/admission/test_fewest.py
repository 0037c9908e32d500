"""How few tokens a prompt can have."""

from gateway.admission.fewest import Fewest


def test_before_enough_was_seen_sixty_four_bytes_may_be_one_token() -> None:
    fewest = Fewest()
    for _ in range(31):
        fewest.learn(1000, 250)
    assert fewest.tokens(6400) == 100


def test_then_half_of_the_fewest_ever_seen() -> None:
    fewest = Fewest()
    for _ in range(40):
        fewest.learn(1000, 250)
    assert fewest.tokens(10_000) == 1250
    fewest.learn(1000, 100)
    assert fewest.tokens(10_000) == 500


def test_a_short_prompt_is_mostly_its_chat_template() -> None:
    fewest = Fewest()
    for _ in range(40):
        fewest.learn(10, 40)
    assert fewest.tokens(6400) == 100
