import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.distribution import distribution, percentile
from benchmarks.measure import (
    e2e_co_s,
    e2e_s,
    max_gap_s,
    send_lag_s,
    slos_met,
    summarise,
    tpot_s,
    ttft_co_s,
    ttft_s,
)
from benchmarks.record import RequestRecord
from benchmarks.slo import NO_SLO, Slo
from tests.benchmarks.making import PLAIN, failed, patiently, record

# One request: sent at 1.0, first token 1.5, last token 2.5, 11 tokens


def test_each_metric_from_its_definition() -> None:
    assert ttft_s(PLAIN) == pytest.approx(0.5)
    assert e2e_s(PLAIN) == pytest.approx(1.5)
    assert tpot_s(PLAIN) == pytest.approx(1.0 / 10)  # eleven tokens, the first of which opened the clock
    assert max_gap_s(PLAIN) == 0.1


def test_what_the_client_was_late_by_is_in_the_co_metrics_only() -> None:
    late = record(intended_s=0.2)
    assert send_lag_s(late) == pytest.approx(0.8)
    assert ttft_co_s(late) == pytest.approx(1.3)
    assert e2e_co_s(late) == pytest.approx(2.3)
    assert ttft_s(late) == pytest.approx(0.5)


def test_tpot_leaves_out_the_tokens_of_the_first_chunk() -> None:
    assert tpot_s(record(output_tokens=30, chunks=10, first_chunk_tokens=3)) == pytest.approx(1.0 / 27)
    assert tpot_s(record(output_tokens=30, chunks=10)) == pytest.approx(1.0 / 29)


@pytest.mark.parametrize(
    "changes",
    [
        {"output_tokens": None},
        {"output_tokens": 1},
        {"output_tokens": 3, "first_chunk_tokens": 3},
        {"chunks": 1, "last_token_s": 1.5},  # thirty tokens at once took no measurable time each, which is not 0
        {"first_token_s": None, "last_token_s": None, "chunks": 0},
    ],
)
def test_tpot_is_null_where_undefined_never_zero(changes: dict[str, object]) -> None:
    assert tpot_s(record(**changes)) is None


def test_null_stays_null_in_a_closed_loop() -> None:
    summary = summarise([PLAIN, failed()], NO_SLO)
    assert not summary.is_open_loop
    assert (ttft_co_s(PLAIN), e2e_co_s(PLAIN), send_lag_s(PLAIN)) == (None, None, None)
    assert summary.ttft_co.ok.p50 is None
    assert summary.ttft_co.all.p50 is None
    assert summary.send_lag.count == 0
    assert (summary.rates.offered, summary.rates.sent, summary.rates.goodput) == (None, None, None)


# Percentiles


def test_percentiles_are_nearest_rank() -> None:
    values = [float(value) for value in range(1, 11)]
    assert [percentile(values, percent) for percent in (10, 50, 51, 90, 91, 100)] == [1, 5, 6, 9, 10, 10]
    assert percentile([], 50) is None
    assert percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("count", "known"), [(9, 0), (10, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_a_percentile_needs_a_value_beyond_it(count: int, known: int) -> None:
    seen = distribution(range(count))
    assert sum(value is not None for value in (seen.p90, seen.p95, seen.p99)) == known
    assert seen.max == count - 1


@patiently
@given(st.lists(st.floats(0, 1e9) | st.just(math.inf), min_size=100, max_size=120))
def test_percentiles_are_monotone_and_were_seen(values: list[float]) -> None:
    seen = distribution(values)
    points = [seen.p50, seen.p90, seen.p95, seen.p99, seen.max]
    known = [point for point in points if point is not None]
    assert len(known) == 5
    assert known == sorted(known)
    assert set(known) <= set(values)


# A run of four, worked by hand


def four() -> list[RequestRecord]:
    """Arrivals at 0, 1, 2, 3 s; one fast, one late, one slow to generate, one refused."""
    fast = record(intended_s=0.0, sent_s=0.0, first_token_s=0.2, last_token_s=1.2, done_s=1.3)
    late = replace(fast, index=1, intended_s=1.0, sent_s=1.9, first_token_s=2.1, last_token_s=3.1, done_s=3.2)
    slow = replace(fast, index=2, intended_s=2.0, sent_s=2.0, first_token_s=2.2, last_token_s=7.2, done_s=8.0)
    return [fast, late, slow, failed(index=3, intended_s=3.0, sent_s=3.0, done_s=3.1)]


def test_rates_are_over_the_first_arrival_to_the_last_end() -> None:
    summary = summarise(four(), NO_SLO)
    assert summary.duration_s == pytest.approx(8.0)
    assert (summary.requests, summary.ok, summary.failed) == (4, 3, 1)
    assert summary.rates.requests == pytest.approx(3 / 8)
    assert summary.rates.output_tokens == pytest.approx(3 * 11 / 8)
    assert summary.rates.total_tokens == pytest.approx(3 * 111 / 8)
    assert summary.rates.offered == pytest.approx(1.0)
    assert summary.rates.sent == pytest.approx(3 / 3.0)
    assert summary.send_lag.max == pytest.approx(0.9)


def test_goodput_counts_what_met_every_bound_over_all_offered() -> None:
    summary = summarise(four(), Slo(ttft_s=0.5, tpot_s=0.2))
    # fast meets both; late has ttft 0.2 from sending but 1.1 from its arrival; slow has tpot 0.5; the fourth failed
    assert summary.slo_attainment == {"ttft": 2 / 4, "tpot": 2 / 4}
    assert summary.rates.goodput == pytest.approx(1 / 8)


def test_e2e_is_held_against_the_intended_arrival_too() -> None:
    assert slos_met(four()[1], Slo(e2e_s=1.5)) == {"e2e": False}  # 1.2 s from sending, 2.1 s from its arrival
    assert slos_met(replace(four()[1], intended_s=None), Slo(e2e_s=1.5)) == {"e2e": True}


def test_a_failure_is_infinitely_slow_among_all_and_absent_among_ok() -> None:
    summary = summarise(four(), NO_SLO)
    assert summary.ttft.ok.count == 3
    assert summary.ttft.ok.max == pytest.approx(0.2)
    assert summary.ttft.all.count == 4
    assert summary.ttft.all.max == math.inf
    assert summary.tpot.all.p50 == pytest.approx(0.1)


def test_failures_are_counted_by_kind() -> None:
    refused = [failed(index=index) for index in range(3)]
    summary = summarise([*refused, failed(outcome="timeout", status=None, error="late")], NO_SLO)
    assert [(f.outcome, f.status, f.error, f.count) for f in summary.failures] == [
        ("http_error", 500, "boom", 3),
        ("timeout", None, "late", 1),
    ]


def test_an_unknown_length_cannot_meet_tpot_but_a_single_token_does() -> None:
    assert slos_met(record(output_tokens=None), Slo(tpot_s=1.0)) == {"tpot": False}
    assert slos_met(record(output_tokens=1, chunks=1), Slo(tpot_s=1.0)) == {"tpot": True}
    assert slos_met(failed(output_tokens=1), Slo(tpot_s=1.0)) == {"tpot": False}


def test_an_answer_without_a_token_has_no_ttft_and_meets_none() -> None:
    empty = record(first_token_s=None, last_token_s=None, chunks=0, chunk_gaps_s=(), max_gap_s=None, output_tokens=0)
    assert ttft_s(empty) is None
    assert slos_met(empty, Slo(ttft_s=9.0, e2e_s=9.0)) == {"ttft": False, "e2e": False}


def test_tokens_asked_stand_beside_tokens_seen() -> None:
    tokens = summarise([PLAIN, record(output_tokens=5, chunks=5), record(output_tokens=None)], NO_SLO).tokens
    assert (tokens.prompt_asked, tokens.prompt, tokens.output_asked, tokens.output) == (90, 100, 16, 8)
    assert tokens.per_chunk == pytest.approx(16 / 16)
    assert tokens.without_usage == 1
    assert tokens.cached == 0


def test_a_run_of_nothing_is_zeros_and_nulls() -> None:
    summary = summarise([], Slo(ttft_s=1.0))
    assert (summary.requests, summary.ok, summary.duration_s, summary.slo_attainment) == (0, 0, 0.0, {})
    assert summary.rates.goodput is None
    assert summary.ttft.ok.p50 is None


steps = st.floats(min_value=0, max_value=100)


@st.composite
def plausible(draw: st.DrawFn, *, is_open_loop: bool) -> RequestRecord:
    intended = draw(steps)
    sent = intended + draw(steps)
    first = sent + draw(steps)
    gaps = tuple(draw(st.lists(steps, max_size=5)))
    last = first + sum(gaps)
    times = {"intended_s": intended if is_open_loop else None, "sent_s": sent, "done_s": last + draw(steps)}
    if draw(st.booleans()):
        return failed(**times)
    return record(
        **times,
        first_token_s=first,
        last_token_s=last,
        chunk_gaps_s=gaps,
        max_gap_s=max(gaps, default=None),
        chunks=len(gaps) + 1,
        output_tokens=draw(st.none() | st.integers(0, 50)),
    )


bounds = st.none() | st.floats(min_value=0.001, max_value=300)
runs = st.booleans().flatmap(lambda is_open: st.lists(plausible(is_open_loop=is_open), max_size=30))


@patiently
@given(runs, st.builds(Slo, ttft_s=bounds, tpot_s=bounds, e2e_s=bounds))
def test_goodput_never_exceeds_throughput_and_nothing_is_negative(records: list[RequestRecord], slo: Slo) -> None:
    summary = summarise(records, slo)
    rates = summary.rates
    if rates.goodput is not None:
        assert rates.requests is not None
        assert rates.goodput <= rates.requests
    for share in summary.slo_attainment.values():
        assert 0 <= share <= summary.ok / summary.requests
    figures = [summary.duration_s, rates.offered, rates.sent, rates.requests, rates.output_tokens, rates.total_tokens]
    for latency in (summary.ttft, summary.ttft_co, summary.tpot, summary.e2e, summary.e2e_co, summary.max_gap):
        assert latency.ok.count <= latency.all.count
        figures += [latency.ok.mean, latency.ok.p50, latency.ok.max, latency.all.p50, latency.all.max]
    assert all(figure >= 0 for figure in figures if figure is not None)
