from dataclasses import fields
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import record as record_module
from benchmarks.errors import OutputError
from benchmarks.record import OUTCOMES, RecordWriter, RequestRecord, read_records
from tests.benchmarks.making import PLAIN, failed, patiently, record

times = st.floats(min_value=0, max_value=1e6)
counts = st.integers(0, 2**31)


def maybe(values: st.SearchStrategy[float] | st.SearchStrategy[int]) -> st.SearchStrategy[float | None]:
    return st.none() | values


records = st.builds(
    RequestRecord,
    index=counts,
    outcome=st.sampled_from(OUTCOMES),
    intended_s=maybe(times),
    sent_s=times,
    first_byte_s=maybe(times),
    first_token_s=maybe(times),
    last_token_s=maybe(times),
    done_s=times,
    status=st.none() | st.integers(100, 599),
    error=st.none() | st.text(),
    prompt_tokens=st.none() | counts,
    output_tokens=st.none() | counts,
    cached_tokens=st.none() | counts,
    asked_prompt_tokens=counts,
    asked_output_tokens=counts,
    first_chunk_tokens=st.none() | counts,
    token_events=counts,
    chunks=counts,
    chunk_gaps_s=st.lists(times, max_size=5).map(tuple),
    max_gap_s=maybe(times),
)


@patiently
@given(st.lists(records, max_size=5))
def test_what_is_written_is_read_back(tmp_path: Path, written: list[RequestRecord]) -> None:
    path = tmp_path / "records.jsonl"
    path.unlink(missing_ok=True)
    with RecordWriter(path) as writer:
        for one in written:
            writer.write(one)
    assert read_records(path) == tuple(written)


def test_a_record_is_on_disk_before_the_next_is_looked_at(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.write(PLAIN)
        assert read_records(tmp_path / "records.jsonl") == (PLAIN,)


def test_every_field_is_documented_and_a_line_of_json(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "r") as writer:
        writer.write(failed())
    line = orjson.loads((tmp_path / "r").read_bytes())
    assert list(line) == [field.name for field in fields(RequestRecord)]
    assert all(name in (record_module.__doc__ or "") for name in line)
    assert line["first_token_s"] is None


def test_the_half_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        writer.write(PLAIN)
        writer.write(record(index=1))
    path.write_bytes(path.read_bytes()[:-20])
    assert read_records(path) == (PLAIN,)


@pytest.mark.parametrize("line", [b"not json", b"[]", b"{}", b'{"index": 1}'])
def test_a_file_of_something_else_is_named_with_its_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(orjson.dumps(PLAIN) + b"\n" + line + b"\n")
    with pytest.raises(OutputError, match=r"x\.jsonl:2"):
        read_records(tmp_path / "x.jsonl")


def test_old_results_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("old")
    with pytest.raises(OutputError, match="already exists"):
        RecordWriter(tmp_path / "records.jsonl")
    assert (tmp_path / "records.jsonl").read_text() == "old"


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        read_records(tmp_path / "none.jsonl")
