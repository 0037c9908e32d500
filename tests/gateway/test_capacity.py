"""What engines say of themselves: their size, their sleep, and that they are not who they were."""

from gateway.admission.gate import Gate
from gateway.capacity import Capacity
from gateway.config import Queue, Timeouts
from gateway.figures import parse_figures
from gateway.replica import ModelCard, Pool, Replica
from gateway.upstream import Upstream
from tests.gateway.test_admission import metrics


class _Room:
    """One replica of 5000 predicted tokens, and what is known of it."""

    def __init__(self) -> None:
        self.replica = Replica("e0", "http://e0", (ModelCard("m"),), predicted_kv_tokens=5000, state="ready")
        self.pool = Pool(Upstream(Timeouts()), [self.replica])
        self.gate = Gate(lambda: self.pool.replicas, self.pool.candidates, lambda: 0.0, Queue(), {})
        self.capacity = Capacity(self.pool, self.gate)
        self.restarts = 0
        restarted = self.pool.router.restarted

        def count(load: Replica) -> None:
            self.restarts += 1
            restarted(load)

        self.pool.router.restarted = count  # type: ignore[method-assign]  # to be seen, and done

    def says(self, text: str) -> None:
        self.capacity.note(self.replica, parse_figures(text))
        self.gate.refresh()


def test_what_was_predicted_holds_until_the_engine_says_more() -> None:
    room = _Room()
    room.gate.refresh()
    assert room.replica.kv_budget_tokens == 4750
    room.says(metrics(9600))
    assert (room.replica.kv_capacity_tokens, room.replica.kv_budget_tokens) == (9600, 9120)
    assert room.restarts == 0


def test_another_start_and_another_size_are_another_process() -> None:
    room = _Room()
    room.says(metrics(9600, started=1000.5))
    room.says(metrics(9600, started=1000.5))
    assert room.restarts == 0
    room.says(metrics(9600, started=2000.5))
    assert room.restarts == 1
    room.says(metrics(8000, started=2000.5))
    assert room.restarts == 2
    assert room.replica.kv_capacity_tokens == 8000


def test_one_that_sleeps_has_room_for_nothing_and_its_cache_is_gone() -> None:
    room = _Room()
    room.says(metrics(9600))
    room.says(metrics(9600, awake=0.0))
    room.says(metrics(9600, awake=0.0))
    assert (room.replica.most_in_flight, room.restarts) == (0, 1)
    room.says(metrics(9600))
    assert room.replica.most_in_flight == float("inf")


def test_one_that_says_nothing_changes_nothing() -> None:
    room = _Room()
    room.says("")
    assert room.replica.kv_capacity_tokens == 5000
    assert room.replica.most_in_flight == float("inf")


def test_one_that_comes_back_is_asked_at_once() -> None:
    room = _Room()
    assert room.capacity.unread() == [room.replica]
    room.says(metrics(9600))
    assert room.capacity.unread() == []
    room.replica.state = "unhealthy"
    room.capacity.forget()
    room.replica.state = "ready"
    assert room.capacity.unread() == []  # it was away for a moment: the next round will tell
    room.replica.state = "starting"
    room.capacity.forget()
    room.replica.state = "ready"
    assert room.capacity.unread() == [room.replica]
