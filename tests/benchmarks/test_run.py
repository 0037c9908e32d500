import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks.config import RunConfig
from benchmarks.errors import OutputError, TargetError
from benchmarks.measure import summarise
from benchmarks.record import RecordWriter, RequestRecord, read_records
from benchmarks.run import Progress, execute
from benchmarks.slo import Slo
from tests.fake_engine import FakeEngine, chat_stream, json_answer


def config(fake: FakeEngine, out_dir: Path, **options: Any) -> RunConfig:
    chosen = {"requests": 5, "warmup": 0, "timeout_s": 30.0, "seed": 1, **options}
    return RunConfig(fake.url, out_dir=out_dir, **chosen)


async def test_a_closed_loop_keeps_to_its_concurrency(fake: FakeEngine, tmp_path: Path) -> None:
    fake.default = chat_stream(("a", "b"), first_delay_s=0.1)
    seen: list[Progress] = []
    result = await execute(config(fake, tmp_path, concurrency=2, requests=6), on_progress=seen.append)
    assert (result.summary.ok, result.model, result.is_interrupted, result.given_up) == (6, "fake", False, 0)
    assert sorted(record.index for record in result.records) == [0, 1, 2, 3, 4, 5]
    assert all(record.intended_s is None for record in result.records)
    for record in result.records:
        others = [other for other in result.records if other.sent_s < record.sent_s < other.done_s]
        assert len(others) <= 1
    assert [(progress.done, progress.total) for progress in seen] == [(done, 6) for done in range(7)]


async def test_an_open_loop_does_not_wait_for_answers(fake: FakeEngine, tmp_path: Path) -> None:
    """Ten requests in half a second, two seconds for each answer: all are sent before one is answered."""
    fake.default = chat_stream(("a",), first_delay_s=2.0)
    result = await execute(config(fake, tmp_path, rate=20.0, requests=10, arrivals="constant"))
    assert result.summary.ok == 10
    by_index = sorted(result.records, key=lambda record: record.index)
    assert [record.intended_s for record in by_index] == [index / 20 for index in range(10)]
    assert all(record.sent_s >= (record.intended_s or 0) for record in by_index)
    assert max(record.sent_s for record in by_index) < min(record.first_token_s or 0 for record in by_index)


async def test_poisson_arrivals_are_the_seeds(fake: FakeEngine, tmp_path: Path) -> None:
    first = await execute(config(fake, tmp_path / "a", rate=100.0))
    second = await execute(config(fake, tmp_path / "b", rate=100.0))

    def intended(records: tuple[RequestRecord, ...]) -> list[float | None]:
        return [record.intended_s for record in sorted(records, key=lambda record: record.index)]

    assert intended(first.records) == intended(second.records)
    gaps = {round((b or 0) - (a or 0), 6) for a, b in pairwise(intended(first.records))}
    assert len(gaps) == 4


async def test_prompts_are_never_seen_twice_unless_the_run_id_says_so(fake: FakeEngine, tmp_path: Path) -> None:
    for name, run_id in (("a", None), ("b", None), ("c", "x"), ("d", "x")):
        await execute(config(fake, tmp_path / name, concurrency=1, requests=3, warmup=2, run_id=run_id))
    texts = [orjson.loads(seen.body)["messages"][0]["content"] for seen in fake.seen]
    assert len(texts) == 4 * 5
    assert len(set(texts[:15])) == 15
    assert texts[15:] == texts[10:15]


async def test_warm_up_is_not_measured(fake: FakeEngine, tmp_path: Path) -> None:
    fake.enqueue(json_answer({"error": "cold"}, status=503), json_answer({"error": "cold"}, status=503))
    result = await execute(config(fake, tmp_path, concurrency=1, requests=3, warmup=2))
    assert (result.summary.requests, result.summary.failed) == (3, 0)
    assert len(fake.seen) == 5


async def test_what_is_on_disk_is_what_was_summarised(fake: FakeEngine, tmp_path: Path) -> None:
    fake.enqueue(json_answer({"error": "no"}, status=500))
    slo = Slo(ttft_s=5.0)
    result = await execute(config(fake, tmp_path, rate=50.0, slo=slo))
    on_disk = read_records(tmp_path / "records.jsonl")
    assert on_disk == result.records
    assert summarise(on_disk, slo) == result.summary
    assert result.summary.failures[0].status == 500


async def test_the_engines_figures_are_taken_before_and_after(fake: FakeEngine, tmp_path: Path) -> None:
    fake.metrics_text = "vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_running 2\n"
    result = await execute(config(fake, tmp_path, concurrency=1))
    assert result.server is not None
    assert result.server.readings >= 2
    assert result.server.kv_use_peak == 0.5


async def test_a_server_without_metrics_has_no_figures(fake: FakeEngine, tmp_path: Path) -> None:
    assert (await execute(config(fake, tmp_path, concurrency=1))).server is None


async def test_the_load_generator_measures_itself(fake: FakeEngine, tmp_path: Path) -> None:
    fake.default = chat_stream(("a",), first_delay_s=0.3)
    lag = (await execute(config(fake, tmp_path, concurrency=5))).loop_lag
    assert lag.p50_s is not None
    assert lag.p99_s is not None
    assert lag.max_s is not None
    assert 0 <= lag.p50_s <= lag.p99_s <= lag.max_s


async def test_an_interrupted_run_keeps_what_it_has(fake: FakeEngine, tmp_path: Path) -> None:
    fake.enqueue(chat_stream(), chat_stream())
    fake.default = chat_stream(ending="hang")
    stop = asyncio.Event()

    def stop_after_two(progress: Progress) -> None:
        if progress.done == 2:
            stop.set()

    result = await execute(config(fake, tmp_path, concurrency=1), on_progress=stop_after_two, stop=stop)
    assert result.is_interrupted
    assert (result.summary.requests, result.summary.ok) == (2, 2)
    assert result.given_up <= 1
    assert read_records(tmp_path / "records.jsonl") == result.records


async def test_a_run_stopped_before_it_began_is_empty(fake: FakeEngine, tmp_path: Path) -> None:
    fake.default = chat_stream(ending="hang")
    stop = asyncio.Event()
    stop.set()
    result = await execute(config(fake, tmp_path, concurrency=1, warmup=1), stop=stop)
    assert result.is_interrupted
    assert result.records == ()


async def test_results_are_not_written_over_others(fake: FakeEngine, tmp_path: Path) -> None:
    await execute(config(fake, tmp_path, concurrency=1))
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        await execute(config(fake, tmp_path, concurrency=1))
    assert (tmp_path / "records.jsonl").read_bytes() == before


async def test_a_place_that_cannot_be_written_is_said_before_any_load(fake: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make"):
        await execute(config(fake, tmp_path / "file" / "below", concurrency=1))
    assert fake.seen == []


async def test_a_disk_that_fills_up_ends_the_run_with_its_reason(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: RecordWriter, __: RequestRecord) -> None:
        raise OutputError("cannot write: No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OutputError, match="No space"):
        await execute(config(fake, tmp_path, concurrency=1))


async def test_an_unknown_model_leaves_nothing_behind(fake: FakeEngine, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="fake"):
        await execute(config(fake, tmp_path / "out", concurrency=1, model="other"))
    assert not (tmp_path / "out").exists()
