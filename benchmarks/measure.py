"""Records -> Summary. Pure; each figure is defined once, here.

ttft       first token - sent                     ttft_co    first token - intended arrival (open loop only)
e2e        last token - sent                      e2e_co     last token - intended arrival (open loop only)
tpot       (last token - first token) / (n - k): n the server's output tokens, k those of the first chunk (1 when it
           does not say); None when n is unknown, n <= k, or the answer came in one chunk. Never 0.
chunk_gap  from one chunk to the next, pooled over the requests; per token only while tokens_per_chunk is about 1
max_gap    the longest chunk_gap of a request
send_lag   sent - intended arrival: what the load generator itself was late by
goodput    requests/s that met every SLO, over the run; attainment: the share of all requests that met one

Of an SLO's bounds ttft and e2e are held against the intended arrival in an open loop (a server that stalls must not be
excused by the requests it kept from being sent), and against the sending in a closed one.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from benchmarks.distribution import Distribution, distribution
from benchmarks.record import Outcome, RequestRecord
from benchmarks.slo import Slo

SloName = Literal["ttft", "tpot", "e2e"]
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Latency:
    """One metric twice: of the requests that succeeded, and of all with each failure as +inf."""

    ok: Distribution
    all: Distribution


@dataclass(frozen=True, slots=True)
class Failure:
    """So many requests that failed alike."""

    outcome: Outcome
    status: int | None
    error: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second; None where undefined. `sent` beside `offered` tells whether the load was really offered.

    Tokens are those the server reported, of failed requests too; `requests` counts the ones that succeeded.
    """

    offered: float | None
    sent: float | None
    requests: float | None
    output_tokens: float | None
    total_tokens: float | None
    goodput: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Asked beside actual: means over the requests that succeeded, by the server's own usage.

    `without_usage` of them came without one; `cached` is the sum of prompt tokens the server says it had cached.
    """

    prompt_asked: float | None
    prompt: float | None
    output_asked: float | None
    output: float | None
    cached: int | None
    per_chunk: float | None
    without_usage: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures, times in seconds; `duration_s` runs from the first arrival to the last end."""

    is_open_loop: bool
    requests: int
    ok: int
    failed: int
    failures: tuple[Failure, ...]
    duration_s: float
    rates: Rates
    slo_attainment: dict[SloName, float]
    ttft: Latency
    ttft_co: Latency
    tpot: Latency
    e2e: Latency
    e2e_co: Latency
    max_gap: Latency
    chunk_gap: Distribution
    send_lag: Distribution
    tokens: Tokens


# One request


def ttft_s(record: RequestRecord) -> float | None:
    """Sent to first token."""
    return _span(record.sent_s, record.first_token_s)


def ttft_co_s(record: RequestRecord) -> float | None:
    """Intended arrival to first token, which sending late cannot shorten; None in a closed loop."""
    return _span(record.intended_s, record.first_token_s)


def e2e_s(record: RequestRecord) -> float | None:
    """Sent to last token."""
    return _span(record.sent_s, record.last_token_s)


def e2e_co_s(record: RequestRecord) -> float | None:
    """Intended arrival to last token; None in a closed loop."""
    return _span(record.intended_s, record.last_token_s)


def tpot_s(record: RequestRecord) -> float | None:
    """Time per output token after the first chunk; None when undefined."""
    generating_s = _span(record.first_token_s, record.last_token_s)
    if generating_s is None or record.output_tokens is None or record.chunks < 2:
        return None
    later_tokens = record.output_tokens - (record.first_chunk_tokens or 1)
    return generating_s / later_tokens if later_tokens > 0 else None


def send_lag_s(record: RequestRecord) -> float | None:
    """Intended arrival to sending; None in a closed loop."""
    return _span(record.intended_s, record.sent_s)


def max_gap_s(record: RequestRecord) -> float | None:
    """The longest stall within the answer; None with fewer than two chunks."""
    return record.max_gap_s


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


# Service level


def slos_met(record: RequestRecord, slo: Slo) -> dict[SloName, bool]:
    """For each bound that is set: did this request keep it? A failed one keeps none.

    An answer too short to have a tpot keeps that bound (nothing was slow); one whose length the server did not state
    does not (nothing is known).
    """
    is_open_loop = record.intended_s is not None
    tpot = tpot_s(record)
    if tpot is None and record.output_tokens is not None:
        tpot = 0.0
    measured: dict[SloName, tuple[float | None, float | None]] = {
        "ttft": (ttft_co_s(record) if is_open_loop else ttft_s(record), slo.ttft_s),
        "tpot": (tpot, slo.tpot_s),
        "e2e": (e2e_co_s(record) if is_open_loop else e2e_s(record), slo.e2e_s),
    }
    return {
        name: record.is_ok and value is not None and value <= bound
        for name, (value, bound) in measured.items()
        if bound is not None
    }


# The run


def summarise(records: Sequence[RequestRecord], slo: Slo) -> Summary:
    """The figures of a run; of no records at all they are zeros and None."""
    ok = [record for record in records if record.is_ok]
    duration_s = _duration_s(records)
    return Summary(
        is_open_loop=any(record.intended_s is not None for record in records),
        requests=len(records),
        ok=len(ok),
        failed=len(records) - len(ok),
        failures=_failures(records),
        duration_s=duration_s,
        rates=_rates(records, slo, duration_s),
        slo_attainment=_attainment(records, slo),
        ttft=_latency(records, ttft_s),
        ttft_co=_latency(records, ttft_co_s),
        tpot=_latency(records, tpot_s),
        e2e=_latency(records, e2e_s),
        e2e_co=_latency(records, e2e_co_s),
        max_gap=_latency(records, max_gap_s),
        chunk_gap=distribution(gap for record in ok for gap in record.chunk_gaps_s),
        send_lag=distribution(_known(map(send_lag_s, records))),
        tokens=_tokens(ok),
    )


def _latency(records: Sequence[RequestRecord], metric: Callable[[RequestRecord], float | None]) -> Latency:
    # ttft_co and e2e_co do not exist in a closed loop, for failures neither
    is_defined = metric not in (ttft_co_s, e2e_co_s) or any(record.intended_s is not None for record in records)
    ok = list(_known(metric(record) for record in records if record.is_ok))
    failed = sum(not record.is_ok for record in records) if is_defined else 0
    return Latency(ok=distribution(ok), all=distribution(ok + [math.inf] * failed))


def _rates(records: Sequence[RequestRecord], slo: Slo, duration_s: float) -> Rates:
    prompt_tokens = _sum(record.prompt_tokens for record in records)
    output_tokens = _sum(record.output_tokens for record in records)
    total = None if prompt_tokens is None or output_tokens is None else prompt_tokens + output_tokens
    good = sum(all(slos_met(record, slo).values()) for record in records) if slo.is_set else None
    intended = list(_known(record.intended_s for record in records))
    return Rates(
        offered=_pace(intended),
        sent=_pace([record.sent_s for record in records]) if intended else None,
        requests=_ratio(sum(record.is_ok for record in records), duration_s),
        output_tokens=_ratio(output_tokens, duration_s),
        total_tokens=_ratio(total, duration_s),
        goodput=_ratio(good, duration_s),
    )


def _attainment(records: Sequence[RequestRecord], slo: Slo) -> dict[SloName, float]:
    met = [slos_met(record, slo) for record in records]
    return {name: sum(one[name] for one in met) / len(met) for name in (met[0] if met else ())}


def _tokens(ok: Sequence[RequestRecord]) -> Tokens:
    counted = [record for record in ok if record.output_tokens is not None]
    return Tokens(
        prompt_asked=_mean(record.asked_prompt_tokens for record in ok),
        prompt=_mean(record.prompt_tokens for record in ok),
        output_asked=_mean(record.asked_output_tokens for record in ok),
        output=_mean(record.output_tokens for record in ok),
        cached=_sum(record.cached_tokens for record in ok),
        per_chunk=_ratio(_sum(record.output_tokens for record in counted), sum(record.chunks for record in counted)),
        without_usage=len(ok) - len(counted),
    )


def _failures(records: Sequence[RequestRecord]) -> tuple[Failure, ...]:
    alike = Counter((record.outcome, record.status, record.error) for record in records if not record.is_ok)
    return tuple(Failure(*kind, count=count) for kind, count in alike.most_common())


def _duration_s(records: Sequence[RequestRecord]) -> float:
    if not records:
        return 0.0
    starts = (record.sent_s if record.intended_s is None else record.intended_s for record in records)
    return max(record.done_s for record in records) - min(starts)


# Small sums in which None means unknown


def _known(values: Iterable[_Number | None]) -> Iterator[_Number]:
    return (value for value in values if value is not None)


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(_known(values))
    return sum(known) if known else None


def _mean(values: Iterable[int | None]) -> float | None:
    known = list(_known(values))
    return sum(known) / len(known) if known else None


def _ratio(amount: float | None, base: float) -> float | None:
    return amount / base if amount is not None and base > 0 else None


def _pace(times: Sequence[float]) -> float | None:
    """Events per second between the first and the last of `times`."""
    return _ratio(len(times) - 1, max(times) - min(times)) if times else None
