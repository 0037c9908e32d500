from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from benchmarks.config import RunConfig
from benchmarks.measure import Summary
from benchmarks.report import SCHEMA, argv, as_json, dump, render, save
from benchmarks.run import RunResult, execute
from benchmarks.slo import Slo
from tests.fake_engine import FakeEngine, chat_stream, json_answer


async def result(fake: FakeEngine, out_dir: Path, **options: Any) -> RunResult:
    fake.default = chat_stream(("a", "b", "c"), interval_s=0.01)
    fake.enqueue(json_answer({"error": {"message": "the engine is dead"}}, status=500))
    chosen = {"concurrency": 2, "requests": 4, "warmup": 0, "api_key": "sk-secret", **options}
    return await execute(RunConfig(fake.url, out_dir=out_dir, **chosen))


def screen(run: RunResult) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(run))
    return capture.get()


async def test_the_json_is_whole_and_holds_no_key(fake: FakeEngine, tmp_path: Path) -> None:
    run = await result(fake, tmp_path, slo=Slo(ttft_s=5.0))
    path = save(run)
    assert path == tmp_path / "summary.json"
    written = orjson.loads(path.read_bytes())
    assert written == orjson.loads(dump(run))
    assert b"sk-secret" not in path.read_bytes()
    assert written["schema"] == SCHEMA
    assert set(written["summary"]) == {field.name for field in fields(Summary)}
    assert written["config"]["concurrency"] == 2
    assert written["config"]["slo"] == {"ttft_s": 5.0, "tpot_s": None, "e2e_s": None}
    assert written["machine"]["cores"] >= 1
    assert {"berth", "python", "aiohttp"} <= set(written["versions"])
    assert written["server"] is None


async def test_infinity_is_spelt_and_null_stays_null(fake: FakeEngine, tmp_path: Path) -> None:
    summary = orjson.loads(dump(await result(fake, tmp_path)))["summary"]
    assert summary["ttft"]["all"]["max"] == "inf"
    assert summary["ttft"]["ok"]["p99"] is None
    assert summary["ttft_co"]["ok"]["p50"] is None


async def test_the_command_line_repeats_the_run(fake: FakeEngine, tmp_path: Path) -> None:
    run = await result(fake, tmp_path, slo=Slo(ttft_s=0.5, tpot_s=0.05), ignore_eos=True)
    words = " ".join(argv(run.config, run.model))
    assert words.startswith(f"berth bench run {fake.url} --model fake --concurrency 2 --requests 4")
    assert words.endswith("--ignore-eos --slo ttft=0.5,tpot=0.05")
    assert "--rate" not in words


async def test_the_screen_says_what_happened(fake: FakeEngine, tmp_path: Path) -> None:
    text = screen(await result(fake, tmp_path, slo=Slo(ttft_s=5.0)))
    assert "concurrency 2, 3 of 4 requests ok" in text
    assert "ttft 75.0%" in text
    assert "not exported" in text
    assert "1 x http_error 500: the engine is dead" in text
    assert "never" in text  # the worst of all requests, one of which failed
    assert "closed loop" in text
    assert "from arrival" not in text


async def test_an_open_loop_shows_what_it_was_late_by(fake: FakeEngine, tmp_path: Path) -> None:
    text = screen(await result(fake, tmp_path, rate=50.0, concurrency=None))
    assert "TTFT from arrival" in text
    assert "send lag" in text
    assert "closed loop" not in text


async def test_an_interrupted_run_says_so(fake: FakeEngine, tmp_path: Path) -> None:
    run = replace(await result(fake, tmp_path), is_interrupted=True, given_up=3)
    assert "INTERRUPTED" in screen(run)
    assert "3 requests were in flight" in screen(run)
    assert as_json(run)["given_up"] == 3


async def test_markup_in_a_servers_error_is_only_text(fake: FakeEngine, tmp_path: Path) -> None:
    fake.enqueue(json_answer({"error": {"message": "bad [/red] [bold]x"}}, status=400))
    assert "bad [/red] [bold]x" in screen(await result(fake, tmp_path))
