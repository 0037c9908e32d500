"""What the router believes of a replica whose engine says itself what it holds. Blocks of 10 units, a token each."""

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.routing import Chain, Load, Pick, Route, Router
from gateway.routing.policies import prefix
from tests.gateway.routing.contents import check, contents
from tests.gateway.routing.prompts import hashes

ENDS = tuple(range(10, 110, 10))
A, B = (1, 2, 3), (11, 12)
PROMPTS = ("a", "abc", "abcde", "abx", "abxyz", "k", "klmno")
BLOCKS = sorted({value for text in PROMPTS for value in hashes(text)})


def router(*loads: Load) -> Router[Load]:
    made: Router[Load] = Router(prefix)
    for load in loads:
        load.block_tokens = 1
        made.add(load)
    return made


def route(chain: Sequence[int]) -> Route:
    size = 10 * len(chain) + 1
    return Route(Chain(tuple(chain), ENDS, size), size, 0)


def held(made: Router[Load], load: Load, chain: Sequence[int]) -> int:
    """Tokens of a prompt that it is believed to hold."""
    asked = route(chain)
    made.look(asked)
    return asked.cached_tokens.get(load.slot, 0)


def answered(made: Router[Load], load: Load, chain: Sequence[int], cached_tokens: int | None = None) -> Pick[Load]:
    """One request from its pick to its end; the answer says what was cached, unless that is None."""
    asked = route(chain)
    made.look(asked)
    pick = made.place(asked, load)
    pick.first_token(1.0)
    pick.settle(asked.prompt_tokens, cached_tokens)
    pick.release()
    return pick


def test_what_an_engine_says_it_holds_it_holds_though_nothing_was_sent_there() -> None:
    here, there = Load("here"), Load("there")
    made = router(here, there)
    made.found(here.slot, A[:2])
    assert (held(made, here, A), held(made, there, A)) == (20, 0)


def test_what_it_has_lost_is_gone_though_it_was_sent_there_just_now() -> None:
    here = Load("here")
    made = router(here)
    answered(made, here, A)
    made.found(here.slot, A)
    made.lost(here.slot, A[2:])
    assert held(made, here, A) == 20
    asked = route(A)
    made.look(asked)
    assert made.place(asked, here).settle(31, 20) == {"hit": 20, "evicted": 10, "no_reuse": 1}


def test_what_is_about_to_be_computed_is_not_lost() -> None:
    """Of a hundred equal prompts the second is to see the first one's, whatever was evicted before."""
    here = Load("here")
    made = router(here)
    answered(made, here, B)
    pick = made.place(route(A), here)
    made.lost(here.slot, (*A, *B))
    assert (held(made, here, A), held(made, here, B)) == (30, 0)
    pick.first_token(1.0)
    made.lost(here.slot, A)
    assert held(made, here, A) == 0


def test_what_a_waiting_request_is_behind_stays_when_another_one_leaves_without_a_token() -> None:
    """Its engine has dropped the beginning from under it, and the other one has sent that anew."""
    here = Load("here")
    made = router(here)

    def sent(*chain: int) -> Pick[Load]:
        asked = route(chain)
        made.look(asked)
        return made.place(asked, here)

    first, waiting = sent(1), sent(1, 2, 3)
    first.computed()
    first.release()
    made.lost(here.slot, (1, 2))
    sent(1, 2, 4).release()
    assert held(made, here, (1, 2, 3)) == 30
    sent(1, 2, 5).release()
    waiting.first_token(1.0)
    waiting.release()
    assert held(made, here, (1, 2, 3)) == 30
    assert (here.in_flight, here.waiting, here.queued_tokens) == (0, 0, 0)


def test_a_cache_that_was_emptied_holds_only_what_is_about_to_be_computed() -> None:
    here = Load("here")
    made = router(here)
    answered(made, here, B)
    made.found(here.slot, B)
    made.place(route(A), here)
    made.cleared(here.slot)
    assert (held(made, here, A), held(made, here, B)) == (30, 0)


def test_an_engine_s_word_outlives_what_is_guessed() -> None:
    """It has room for three blocks by what it was sent, and its engine says that it holds five."""
    here = Load("here", kv_capacity_tokens=30)
    made = router(here)
    answered(made, here, B)
    made.found(here.slot, B)
    answered(made, here, A)
    assert (held(made, here, A), held(made, here, B)) == (30, 20)


def test_an_answer_with_less_than_expected_takes_back_guesses_only() -> None:
    here = Load("here")
    made = router(here)
    answered(made, here, A)
    answered(made, here, B)
    made.found(here.slot, B)
    answered(made, here, A, cached_tokens=0)
    assert held(made, here, B) == 20


def test_without_its_word_what_was_sent_there_counts_again() -> None:
    here = Load("here")
    made = router(here)
    answered(made, here, A)
    made.found(here.slot, (*A, *B))
    made.unsure(here.slot, (*A, *B))
    assert (held(made, here, A), held(made, here, B)) == (30, 0)


def test_another_process_forgets_guesses_and_the_engine_speaks_for_itself() -> None:
    """Its figures, which show the restart, may come after the first of its new blocks."""
    here = Load("here")
    made = router(here)
    answered(made, here, A)
    made.found(here.slot, B)
    made.restarted(here)
    assert (held(made, here, A), held(made, here, B)) == (0, 20)


def test_whoever_has_its_slot_next_has_nothing_of_it() -> None:
    here, there = Load("here"), Load("there")
    made = router(here)
    answered(made, here, A)
    made.found(here.slot, (*A, *B))
    made.remove(here)
    made.add(there)
    assert there.slot == 0
    assert (held(made, there, A), held(made, there, B)) == (0, 0)


def test_an_engine_s_word_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.routing.index._MOST_BLOCKS", 3)
    here = Load("here")
    made = router(here)
    made.found(here.slot, (*B, *A))
    assert made.index.said(here.slot) == 3
    assert (held(made, here, A), held(made, here, B)) == (30, 0)


class Words(RuleBasedStateMachine):
    """Requests and an engine's word in any order: a bit is there for one or the other, and for nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = [Load(str(at), kv_capacity_tokens=80) for at in range(3)]
        self.router = router(*self.loads)
        self.said: list[set[int]] = [set(), set(), set()]
        self.open: list[Pick[Load]] = []

    slots = st.integers(0, 2)
    prompts = st.sampled_from(PROMPTS)
    texts = st.lists(st.sampled_from(BLOCKS), max_size=6, unique=True)

    @rule(slot=slots, prompt=prompts)
    def place(self, slot: int, prompt: str) -> None:
        asked = route(hashes(prompt))
        self.router.look(asked)
        self.open.append(self.router.place(asked, self.loads[slot]))

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0, 100), cached=st.integers(0, 60), is_lost=st.booleans())
    def end(self, at: int, cached: int, is_lost: bool) -> None:
        pick = self.open.pop(at % len(self.open))
        if not is_lost:
            pick.first_token(0.1)
            pick.settle(pick.route.prompt_tokens, min(cached, pick.route.prompt_tokens))
        pick.release()

    @rule(slot=slots, texts=texts)
    def found(self, slot: int, texts: list[int]) -> None:
        self.router.found(slot, texts)
        self.said[slot] |= set(texts)

    @rule(slot=slots, texts=texts)
    def lost(self, slot: int, texts: list[int]) -> None:
        self.router.lost(slot, texts)
        self.said[slot] -= set(texts)

    @rule(slot=slots, texts=texts)
    def unsure(self, slot: int, texts: list[int]) -> None:
        self.router.unsure(slot, texts)
        self.said[slot] -= set(texts)

    @rule(slot=slots)
    def cleared(self, slot: int) -> None:
        self.router.cleared(slot)
        self.said[slot].clear()

    @rule(slot=slots)
    def restarted(self, slot: int) -> None:
        self.router.restarted(self.loads[slot])

    @invariant()
    def a_block_is_held_for_one_reason_or_the_other(self) -> None:
        index = self.router.index
        check(index)
        for slot, said in enumerate(self.said):
            assert index.said(slot) == len(said)
            assert index.units(slot) <= 80
            known = said | contents(index, slot).keys()
            for text in PROMPTS:
                depths = {slot: depth for slots, depth in index.match(hashes(text))[0] for slot in slots}
                missing = [at for at, value in enumerate(hashes(text)) if value not in known]
                assert depths.get(slot, 0) == min(missing, default=len(text))


TestWords = Words.TestCase
TestWords.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
