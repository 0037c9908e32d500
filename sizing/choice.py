"""Which of the cards compared does what was asked for at the least money. Arithmetic alone."""

from dataclasses import dataclass

from sizing.compare import Comparison, Row, Workload


@dataclass(frozen=True)
class Choice:
    """The cheapest way to do what was asked: so many engines of one row, for so much an hour in all."""

    row: Row
    engines: int
    usd_per_hour: float


def cheapest(comparison: Comparison) -> Choice | None:
    """Of the rows that fit for certain, or else of the close calls, and that keep the bounds if there are any.

    With users to serve, of as many engines as they need. None where no such row has a price.
    """
    found = [choice for row in comparison.rows if (choice := _choice(row, comparison.workload)) is not None]
    certain = [choice for choice in found if choice.row.verdict == "fits"]
    return min(certain or found, key=lambda choice: choice.usd_per_hour, default=None)


def _choice(row: Row, workload: Workload) -> Choice | None:
    if row.answer is None or not row.answer.fits or row.money is None:
        return None
    served = row.outlook.users if row.outlook else None
    if workload.bound is not None and (served is None or not served.users):
        return None
    engines = row.engines_for_users or 1
    return Choice(row, engines, engines * row.money.cost.per_working_hour(1.0))
