import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tracing import Parent, Trace, Tracing, parent_of, parse_traceparent

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE_ID}-{SPAN_ID}-01".encode()
hexadecimal = st.text("0123456789abcdef")


@pytest.mark.parametrize(
    ("value", "is_sampled"),
    [
        (GOOD, True),
        (GOOD[:-2] + b"00", False),
        (GOOD[:-2] + b"03", True),  # also "random"
        (GOOD[:-2] + b"fe", False),
        (b" " + GOOD + b"\t", True),
        (b"01" + GOOD[2:], True),
        (b"cc" + GOOD[2:] + b"-what-comes-later", True),
    ],
)
def test_well_formed(value: bytes, is_sampled: bool) -> None:
    assert parse_traceparent(value) == Parent(TRACE_ID, SPAN_ID, is_sampled)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        GOOD[:-1],
        GOOD + b"0",
        GOOD + b"-",
        GOOD + b"-more",
        b"01" + GOOD[2:] + b"more",
        b"ff" + GOOD[2:],
        b"0g" + GOOD[2:],
        GOOD.upper(),
        GOOD.replace(b"-", b"_"),
        GOOD.replace(TRACE_ID.encode(), b"0" * 32),
        GOOD.replace(SPAN_ID.encode(), b"0" * 16),
        GOOD[:-2] + b"-1",
        GOOD + b"," + GOOD,
    ],
)
def test_malformed_counts_as_none(value: bytes) -> None:
    assert parse_traceparent(value) is None


@given(st.binary(max_size=80))
def test_no_bytes_whatever_are_an_error(value: bytes) -> None:
    parse_traceparent(value)


def test_two_parents_are_none() -> None:
    assert parent_of([(b"traceparent", GOOD)]) == Parent(TRACE_ID, SPAN_ID, True)
    assert parent_of([(b"traceparent", GOOD), (b"accept", b"*/*"), (b"traceparent", GOOD)]) is None
    assert parent_of([]) is None


@pytest.mark.parametrize("flags", [b"00", b"01"])
def test_a_request_joins_its_callers_trace(flags: bytes) -> None:
    trace = Tracing(sample_ratio=0.0).begin([(b"traceparent", GOOD[:-2] + flags)])
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (TRACE_ID, SPAN_ID, flags == b"01")
    assert trace.span_id != SPAN_ID


def test_what_we_write_can_be_read() -> None:
    tracing = Tracing()
    for _ in range(2000):  # more than are made at a time
        trace = tracing.begin([])
        assert parent_of([trace.header]) == Parent(trace.trace_id, trace.span_id, True)
        assert trace.parent_id is None


def test_ids_are_new_each_time() -> None:
    tracing = Tracing()
    traces = [tracing.begin([]) for _ in range(3000)]
    assert len({trace.trace_id for trace in traces}) == len({trace.span_id for trace in traces}) == 3000


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (1.0, 2000, 2000), (0.25, 380, 620)])
def test_the_share_of_traces_that_is_kept(ratio: float, least: int, most: int) -> None:
    tracing = Tracing(ratio)  # 0.25 of 2000: 500, six standard deviations are 116
    assert least <= sum(tracing.begin([]).is_sampled for _ in range(2000)) <= most


def test_our_span_takes_the_place_of_the_callers() -> None:
    trace = Trace(TRACE_ID, "1" * 16, SPAN_ID, is_sampled=True)
    headers = [(b"accept", b"*/*"), (b"traceparent", GOOD), (b"tracestate", b"a=b")]
    ours = (b"traceparent", f"00-{TRACE_ID}-{'1' * 16}-01".encode())
    assert trace.carried(headers) == [(b"accept", b"*/*"), (b"tracestate", b"a=b"), ours]


def test_the_state_of_a_trace_that_could_not_be_joined_goes_no_further() -> None:
    headers = [(b"traceparent", b"nonsense"), (b"tracestate", b"a=b")]
    trace = Tracing().begin(headers)
    assert trace.carried(headers) == [trace.header]
