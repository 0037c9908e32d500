"""How many retries a failing fleet is allowed."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.retry_budget import RetryBudget, RetryBudgetConfig
from tests.gateway.test_breaker import Clock


def _taken(budget: RetryBudget, tries: int) -> int:
    return sum(budget.take() for _ in range(tries))


def test_at_first_there_is_a_burst() -> None:
    budget = RetryBudget(RetryBudgetConfig(burst=50), Clock())
    assert _taken(budget, 200) == 50
    assert budget.refused == 150


def test_every_fifth_request_pays_for_a_retry() -> None:
    budget = RetryBudget(RetryBudgetConfig(share=0.25, burst=10), Clock())
    assert _taken(budget, 20) == 10
    for _ in range(16):
        budget.requested()
    assert _taken(budget, 20) == 4


def test_a_quiet_gateway_may_retry_too() -> None:
    clock = Clock()
    budget = RetryBudget(RetryBudgetConfig(floor_per_s=2, burst=10), clock)
    assert _taken(budget, 20) == 10
    clock.now_s += 3
    assert _taken(budget, 20) == 6


def test_what_a_dead_replica_leaves_behind_is_free_for_a_while() -> None:
    clock = Clock()
    budget = RetryBudget(RetryBudgetConfig(burst=1, floor_per_s=0, grant_s=10), clock)
    budget.grant(100)
    assert _taken(budget, 200) == 101
    budget.grant(100)
    clock.now_s += 10
    assert _taken(budget, 200) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["requested", "take", "grant"]), st.floats(0, 10)),
        max_size=300,
    ),
    st.floats(0, 1),
    st.floats(0, 20),
    st.floats(0, 100),
)
def test_never_more_than_its_definition_allows(
    events: list[tuple[str, float]], share: float, floor_per_s: float, burst: float
) -> None:
    clock = Clock()
    start_s = clock.now_s
    budget = RetryBudget(RetryBudgetConfig(share, floor_per_s, burst), clock)
    taken = requests = granted = 0
    for event, pause_s in events:
        clock.now_s += pause_s
        if event == "requested":
            budget.requested()
            requests += 1
        elif event == "grant":
            budget.grant(7)
            granted += 7
        else:
            taken += budget.take()
        assert budget.balance >= 0
        allowed = burst + share * requests + floor_per_s * (clock.now_s - start_s) + granted
        assert taken <= allowed + 1e-6
