"""Choose, charge, remember, learn: replicas 'a' and 'b' with KV cache blocks of 10 tokens, prompts whose blocks are
letters of 100 tokens each."""

import pytest

from gateway.routing import Chain, Load, Pick, Route, Router
from gateway.routing.policies import prefix, round_robin
from tests.gateway.routing.prompts import block, route


class World:
    """A router over a few replicas; what their engines say is said here."""

    def __init__(self, names: str = "ab", capacity_tokens: int | None = 10_000) -> None:
        self.router: Router[Load] = Router(prefix)
        self.loads = {name: Load(name, capacity_tokens) for name in names}
        for load in self.loads.values():
            load.block_tokens = 10
            self.router.add(load)

    def sent(self, text: str, to: str, tail: int = 1) -> Pick[Load]:
        """A request that has been placed on `to`."""
        asked = route(text, tail)
        self.router.look(asked)
        return self.router.place(asked, self.loads[to])

    def answered(self, text: str, by: str, cached_tokens: int | None, tail: int = 1) -> Pick[Load]:
        """One that came and went."""
        pick = self.sent(text, by, tail)
        end(pick, cached_tokens)
        return pick

    def held(self, text: str) -> dict[str, int]:
        """Tokens of `text` that each replica is believed to hold."""
        asked = route(text, 1)
        self.router.look(asked)
        return {
            name: asked.cached_tokens[load.slot]
            for name, load in self.loads.items()
            if load.slot in asked.cached_tokens
        }


def end(pick: Pick[Load], cached_tokens: int | None) -> dict[str, int]:
    """First token, usage, gone."""
    pick.first_token(0.1)
    found = pick.settle(pick.route.prompt_tokens, cached_tokens)
    pick.release()
    return {str(fate): tokens for fate, tokens in found.items()}


# What is charged and given back
def test_a_request_that_cannot_be_recorded_is_charged_to_nobody() -> None:
    world = World("a")
    load = world.loads["a"]
    broken = Route(Chain((1, 2, 3), (), 300), 300, 10)  # its blocks have no ends
    world.router.look(broken)
    with pytest.raises(IndexError):
        world.router.place(broken, load)
    assert (load.in_flight, load.waiting, load.queued_tokens, load.work_tokens, load.kv_tokens) == (0, 0, 0, 0, 0)


def test_a_place_costs_what_is_not_cached_until_its_first_token_and_the_rest_until_it_is_left() -> None:
    world = World("a", None)
    world.answered("ab", "a", 0, tail=0)
    load = world.loads["a"]
    asked = route("abcd", output_tokens=40)
    pick = world.router.pick(asked, [load])
    assert (pick.predicted_tokens, pick.uncached_tokens) == (200, 200)
    assert (load.in_flight, load.waiting, load.queued_tokens) == (1, 1, 200)
    assert (load.work_tokens, load.kv_tokens, load.output_tokens) == (240, 440, 40)
    assert load.ahead_tokens == 220 + 440 / 32  # half an output token each, and a 32nd of the KV cache
    pick.first_token(0.05)
    assert (load.in_flight, load.waiting, load.queued_tokens) == (1, 0, 0)
    assert load.ahead_tokens == 20 + 440 / 32
    pick.release()
    assert (load.in_flight, load.work_tokens, load.kv_tokens, load.output_tokens, load.ahead_tokens) == (0, 0, 0, 0, 0)
    assert load.picks == 2


def test_everything_may_be_said_twice() -> None:
    world = World("a")
    pick = world.sent("abc", "a")
    for _ in range(2):
        pick.first_token(0.1)
        pick.computed()
    assert sum(pick.settle(301, 0).values()) == 301
    assert pick.settle(301, 0) == {}
    pick.release()
    pick.release()
    load = world.loads["a"]
    assert (load.in_flight, load.waiting, load.queued_tokens, load.work_tokens) == (0, 0, 0, 0)


def test_the_last_token_is_always_computed_and_its_block_with_it() -> None:
    world = World("a")
    world.answered("ab", "a", 0, tail=0)
    pick = world.sent("ab", "a", tail=0)
    assert (pick.predicted_tokens, pick.uncached_tokens) == (190, 10)


def test_an_empty_prompt() -> None:
    world = World()
    pick = world.router.pick(route(""), list(world.loads.values()))
    assert pick.predicted_tokens == 0
    assert end(pick, 0) == {}
    assert pick.load.in_flight == 0


def test_the_rate_is_learnt_from_what_stood_before_the_first_token() -> None:
    world = World("a")
    for i in range(8):
        first, second = world.sent(f"x{i}", "a", tail=0), world.sent(f"y{i}", "a", tail=0)
        first.first_token(0.2)
        second.first_token(0.4)  # 400 tokens: those of the first were ahead of its own
        for pick in (first, second):
            pick.settle(200, 0)
            pick.release()
    assert world.loads["a"].s_per_token == pytest.approx(0.001)


def test_the_prompt_as_the_engine_counts_it_is_what_the_rate_is_learnt_from() -> None:
    world = World("a")
    for i in range(8):
        pick = world.sent(f"{i}b", "a", tail=0)
        pick.first_token(0.1)
        pick.settle(500, 100)  # estimated as 200
        pick.release()
    assert world.loads["a"].s_per_token == pytest.approx(0.1 / 400)


def test_who_has_not_shown_how_fast_it_is_counts_as_fast_as_its_peers() -> None:
    """Of two that compute 1,000 and 500 tokens/s, 1.5 ms a token in the mean; of others nothing is taken over."""
    world = World("abcd")
    a, b, c, d = world.loads.values()
    for load, elapsed_s in ((a, 1.0), (b, 2.0)):
        for _ in range(8):
            load.learn(1000, elapsed_s)
    known_s = d.s_per_token
    c.use_share(0.5)
    world.router.pick(route("x"), [a, b, c])
    assert [load.s_per_token for load in (a, b, c, d)] == pytest.approx([0.001, 0.002, 0.0015, known_s])
    assert c.token_s == pytest.approx(0.003)
    for _ in range(8):
        c.learn(1000, 0.5)
        world.router.pick(route("x"), [a, b, c])
    assert c.s_per_token == pytest.approx(0.0005)  # its own word, which no peer's changes


def test_where_nobody_has_shown_it_all_count_as_before() -> None:
    world = World("ab")
    before = [load.s_per_token for load in world.loads.values()]
    world.router.pick(route("x"), list(world.loads.values()))
    assert [load.s_per_token for load in world.loads.values()] == before


def test_what_nobody_saw_the_first_token_of_teaches_nothing() -> None:
    world = World("a")
    before_s = world.loads["a"].s_per_token
    for i in range(20):
        pick = world.sent(f"{i % 10}{i}", "a")
        pick.computed()
        pick.settle(pick.route.prompt_tokens, None)
        pick.release()
    assert world.loads["a"].s_per_token == before_s
    assert world.loads["a"].ttft_s is None
    assert world.held("717") == {"a": 300}


# What is remembered
def test_it_is_there_from_the_moment_it_is_sent() -> None:
    world = World()
    world.sent("abc", "a")
    assert world.held("abd") == {"a": 200}


def test_a_burst_of_equal_prompts_waits_for_the_first_until_that_takes_longer_than_a_second_copy() -> None:
    """Computing it anew counts as 950 tokens (12 / 64 more for a copy); who waits makes it 10 + 25 longer for others:
    826 for the second one, and 861 for the third, which is the same within a tenth and 2 ms, or 16 tokens."""
    world = World()
    loads = list(world.loads.values())
    picks = [world.router.pick(route("abcdefgh"), loads) for _ in range(3)]
    assert [pick.load.name for pick in picks] == ["a", "a", "b"]
    assert [pick.uncached_tokens for pick in picks] == [800, 10, 800]


# What is in the caches
def test_what_a_request_uses_cannot_be_pushed_out_and_is_the_newest_when_it_goes() -> None:
    world = World("a", capacity_tokens=600)
    long = world.sent("abc", "a", tail=0)
    long.first_token(0.1)
    world.answered("klm", "a", 0, tail=0)
    world.answered("xyz", "a", 0, tail=0)
    assert world.held("klm") == {"a": 300}
    end(long, 0)
    assert (world.held("abc"), world.held("xyz"), world.held("klm")) == ({"a": 300}, {"a": 300}, {})


def test_an_answer_takes_room_until_it_is_the_oldest() -> None:
    world = World("a", capacity_tokens=500)
    world.answered("x", "a", 0, tail=0)
    asked = route("abc", output_tokens=150)
    world.router.look(asked)
    end(world.router.place(asked, world.loads["a"]), 0)
    assert (world.held("x"), world.held("abc")) == ({}, {"a": 300})  # 100 + 300 + 150
    world.answered("kl", "a", 0, tail=0)
    assert (world.held("kl"), world.held("abc")) == ({"a": 200}, {"a": 300})


def test_a_request_leaves_nothing_in_a_cache_that_was_emptied_while_it_was_there() -> None:
    world = World("a")
    pick = world.sent("abc", "a")
    pick.first_token(0.1)
    world.router.restarted(world.loads["a"])
    end(pick, 0)
    assert world.held("abc") == {}


def test_a_token_counts_more_where_it_pushes_out_what_was_used_lately() -> None:
    """Three requests come and go, at 1 to 6. The one of a is the oldest, from 2 on; what b would lose, from 6 on, is
    four fifths of the way from there to now."""
    world = World(capacity_tokens=1000)
    load = world.loads["b"]
    world.answered("abcdefghij", "a", 0, tail=0)
    world.answered("klmnopqrst", "b", 0, tail=0)
    assert load.own_weight == 1 + 2 * 2 / 3  # from 4 on, and now is 5
    world.answered("klmnopqrst", "b", 1000, tail=0)
    assert load.own_weight == 1 + 2 * 4 / 5
    world.router.restarted(load)
    assert load.own_weight == 1
    world.answered("klmnopqr", "b", 0, tail=99)  # of 1000 more than 100 are free: there is room
    assert load.own_weight == 1
    world.answered("abcdefghij", "a", 1000, tail=0)
    assert world.loads["a"].own_weight == 1 + 2 * 10 / 11  # nothing is lost at b: as if from 0 on


def test_a_lost_request_leaves_nothing() -> None:
    world = World()
    pick = world.sent("abc", "a")
    pick.release()
    assert world.held("abc") == {}
    assert world.router.index.blocks(world.loads["a"].slot) == 0


def test_and_takes_nothing() -> None:
    world = World()
    world.answered("ab", "a", 0)
    world.sent("abc", "a").release()
    assert world.held("abc") == {"a": 200}


def test_two_places_of_one_request() -> None:
    """A hedge: the same route is placed twice, the loser leaves nothing, the winner all."""
    world = World()
    asked = route("abc", 1)
    first = world.router.pick(asked, list(world.loads.values()))
    second = world.router.pick(asked, [load for load in world.loads.values() if load is not first.load])
    assert (first.predicted_tokens, second.predicted_tokens) == (0, 0)
    first.release()
    assert end(second, 0) == {"no_reuse": 301}  # it was elsewhere only because this request was
    assert world.held("abc") == {second.load.name: 300}


def test_a_hedge_leaves_a_prefix_behind_that_another_request_had_computed() -> None:
    world = World()
    world.answered("ab", "a", 0)
    asked = route("abc", 1)
    first = world.router.pick(asked, list(world.loads.values()))
    second = world.router.pick(asked, [world.loads["b"]])
    assert (first.load.name, first.predicted_tokens, second.predicted_tokens) == ("a", 200, 0)
    first.release()
    assert end(second, 0) == {"routed_elsewhere": 200, "no_reuse": 101}
    assert world.held("abc") == {"a": 200, "b": 300}


def test_a_retry_looks_anew() -> None:
    """What the first look found is not there any more when the request is tried elsewhere."""
    world = World()
    world.answered("abc", "a", 0)
    asked = route("abc", 1)
    failed = world.router.pick(asked, list(world.loads.values()))
    assert (failed.load.name, failed.predicted_tokens) == ("a", 300)
    failed.release()
    world.router.restarted(world.loads["a"])
    again = world.router.pick(asked, [world.loads["b"]])
    assert again.predicted_tokens == 0
    assert end(again, 0) == {"restarted": 300, "no_reuse": 1}


def test_who_takes_the_slot_of_one_that_is_gone_holds_nothing() -> None:
    world = World()
    world.answered("abc", "a", 0)
    asked = route("abc", 1)
    world.router.look(asked)
    world.router.remove(world.loads["a"])
    world.loads["c"] = Load("c")
    world.router.add(world.loads["c"])
    assert world.loads["c"].slot == 0
    assert world.router.pick(asked, [world.loads["c"]]).predicted_tokens == 0


def test_a_request_outlives_its_replica() -> None:
    world = World()
    done, lost = world.sent("abc", "a"), world.sent("abd", "a")
    gone = world.loads["a"]
    world.router.remove(gone)
    world.loads["c"] = Load("c")
    world.router.add(world.loads["c"])
    kept = world.sent("abc", "c")
    assert sum(end(done, 0).values()) == 301
    lost.release()
    assert (gone.in_flight, gone.work_tokens, gone.queued_tokens) == (0, 0, 0)
    assert world.held("abc") == {"c": 300}
    assert kept.is_waiting


def test_a_replica_that_came_back_is_not_told_of_its_earlier_life() -> None:
    world = World()
    before = world.sent("abc", "a")
    world.router.remove(world.loads["a"])
    world.router.add(world.loads["a"])
    world.sent("abc", "a")
    before.release()
    assert world.held("abc") == {"a": 300}


def test_a_request_that_a_restart_ended_takes_nothing_from_the_next() -> None:
    world = World()
    ended = world.sent("abc", "a")
    world.router.restarted(world.loads["a"])
    assert world.held("abc") == {}
    world.sent("abc", "a")
    ended.release()
    assert world.held("abc") == {"a": 300}


def test_nothing_is_remembered_of_a_provider_elsewhere() -> None:
    router: Router[Load] = Router(prefix)
    remote = Load("remote")
    pick = router.pick(route("abc"), [remote])
    pick.first_token(0.5)
    assert pick.settle(300, 200) == {}
    pick.release()
    assert (remote.in_flight, remote.ttft_s) == (0, 0.5)
    assert router.index.match((block("a"),)) == ([], 0)


def test_a_policy_of_its_own_for_a_request() -> None:
    world = World()
    world.answered("abc", "b", 0)
    loads = list(world.loads.values())
    assert world.router.pick(route("abc"), loads, round_robin).load.name == "a"
    assert world.router.pick(route("abc"), loads).load.name == "b"


# What is learnt from answers
def test_a_wiped_replica_is_found_out_by_the_first_answer_that_shows_it() -> None:
    world = World()
    for text in ("abc", "xyz", "mno"):
        world.answered(text, "a", 0)
    world.answered("uvw", "b", 0)
    pick = world.sent("xyz", "a")
    assert pick.predicted_tokens == 300
    assert end(pick, 0) == {"restarted": 300, "no_reuse": 1}
    assert world.held("xyz") == {"a": 300}  # it has computed that one just now
    assert world.held("abc") == world.held("mno") == {}
    assert world.held("uvw") == {"b": 300}


def test_one_that_has_evicted_loses_what_is_older() -> None:
    world = World(capacity_tokens=1010)
    world.answered("abc", "a", 0)
    world.answered("klm", "a", 0)
    world.answered("uvwxyz", "a", 0)  # more than half of the cache: it may have pushed out the others
    assert (world.held("abc"), world.held("klm")) == ({"a": 100}, {"a": 300})  # by our count 10 of 12 blocks fit
    assert end(world.sent("klm", "a"), 0) == {"evicted": 300, "no_reuse": 1}
    assert world.held("abc") == {}
    assert world.held("uvwxyz") == {"a": 600}


def test_what_is_behind_the_missing_block_goes_and_what_was_found_stays() -> None:
    world = World()
    world.answered("abcdef", "a", 0)
    world.answered("abcxyz", "a", 300)
    pick = world.sent("abcdefg", "a")
    assert pick.predicted_tokens == 600
    assert end(pick, 304) == {"hit": 304, "evicted": 296, "no_reuse": 101}
    assert world.held("abcxyz") == {"a": 600}  # used later than what is missing


def test_what_is_still_being_computed_is_never_held_against_a_replica() -> None:
    world = World()
    world.answered("xyz", "a", 0)
    first, second = world.sent("abcdef", "a"), world.sent("abcdef", "a")
    assert second.predicted_tokens == 600
    assert end(second, 0) == {"no_reuse": 601}  # both were in the same step
    assert world.held("xyz") == {"a": 300}
    end(first, 0)
    assert world.held("abcdef") == {"a": 600}


def test_rounding_to_blocks_is_no_loss() -> None:
    world = World()
    world.answered("xyz", "a", 0)
    world.answered("abc", "a", 0)
    assert end(world.sent("abc", "a", tail=20), 280) == {"hit": 280, "no_reuse": 40}
    assert world.held("xyz") == {"a": 300}


def test_text_that_makes_fewer_tokens_than_most_is_no_loss() -> None:
    """Estimated at 601 tokens, it has 241: of 600 expected 240 are all there are."""
    world = World()
    world.answered("xyz", "a", 0)
    world.answered("abcdef", "a", 0)
    pick = world.sent("abcdef", "a")
    pick.first_token(0.1)
    assert pick.settle(241, 224) == {"hit": 224, "no_reuse": 17}
    assert world.held("xyz") == {"a": 300}


def test_an_engine_that_does_not_say_changes_nothing() -> None:
    world = World()
    world.answered("abc", "a", None)
    assert end(world.sent("abc", "a"), None) == {}
    assert world.held("abc") == {"a": 300}


def test_of_a_single_replica_nothing_was_ever_elsewhere() -> None:
    """A prefix of 75 tokens is 70 in whole blocks: the other 5 are nobody's."""
    world = World("a")
    for cached_tokens in (0, 70):
        asked = route("abc", 1)
        asked.tokens_per_unit, asked.prompt_tokens = 0.25, 76
        world.router.look(asked)
        found = end(world.router.place(asked, world.loads["a"]), cached_tokens)
    assert found == {"hit": 70, "no_reuse": 6}


def test_another_one_had_it_and_was_too_busy() -> None:
    world = World()
    world.answered("abc", "a", 0)
    assert end(world.sent("abc", "b"), 0) == {"routed_elsewhere": 300, "no_reuse": 1}


def test_tokens_per_unit_may_drift_while_a_request_is_there() -> None:
    """A cache of 400 tokens is 4 blocks at one token a unit, and 8 at a half; each request counts by its own."""
    world = World("a", capacity_tokens=400)
    load = world.loads["a"]
    whole, half = route("abcd"), route("abcdefgh")
    half.tokens_per_unit, half.prompt_tokens = 0.5, 400
    first = world.router.pick(whole, [load])
    second = world.router.pick(half, [load])
    assert world.router.index.units(load.slot) == 800
    end(first, 0)
    assert sum(end(second, 200).values()) == 400
    third = world.router.pick(route("x"), [load])
    assert world.router.index.units(load.slot) == 400
    third.release()
    assert (load.in_flight, load.queued_tokens, load.work_tokens, load.kv_tokens) == (0, 0, 0, 0)
