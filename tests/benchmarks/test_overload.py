"""What the overload bench counts as good, and as the best."""

from benchmarks.overload import Cell, table
from benchmarks.slo import Slo
from tests.benchmarks.making import record

SLO = Slo(ttft_s=1.0, tpot_s=0.1)


def cell(factor: float, *, queue: bool, good: int, slow: int, refused: int) -> Cell:
    """Ten seconds of requests: answered in time, answered late, and refused."""
    answered = [
        record(intended_s=0.0, sent_s=0.0, first_token_s=ttft_s, last_token_s=ttft_s + 0.5, output_tokens=11)
        for ttft_s in [0.5] * good + [2.0] * slow
    ]
    turned_away = [record(outcome="http_error", status=503, intended_s=0.0) for _ in range(refused)]
    return Cell(factor, 2.0 * factor, queue, (*answered, *turned_away), 10.0)


def test_only_answers_within_the_slo_are_goodput() -> None:
    assert cell(1, queue=True, good=12, slow=5, refused=3).goodput(SLO) == 1.2


def test_a_rate_is_compared_with_the_best_of_its_kind() -> None:
    cells = [
        cell(1, queue=True, good=20, slow=0, refused=0),
        cell(1, queue=False, good=16, slow=4, refused=0),
        cell(3, queue=True, good=19, slow=0, refused=41),
        cell(3, queue=False, good=4, slow=56, refused=0),
    ]
    rows = [line.split()[:8] for line in table(cells, SLO)[1:]]
    assert rows == [
        ["1x", "2.00", "on", "2.00", "100%", "20", "0", "0"],
        ["1x", "2.00", "off", "1.60", "100%", "20", "0", "0"],
        ["3x", "6.00", "on", "1.90", "95%", "19", "41", "0"],
        ["3x", "6.00", "off", "0.40", "25%", "60", "0", "0"],
    ]
