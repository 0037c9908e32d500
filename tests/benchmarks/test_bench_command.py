import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from benchmarks.record import read_records
from serving.commands.bench import app
from tests.fake_engine import FakeEngine, chat_stream, json_answer


def bench(*words: str) -> Result:
    return CliRunner().invoke(app, ["run", *words])


def test_a_run_prints_a_table_and_leaves_its_files(fake: FakeEngine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = bench(f"{fake.url}/v1", "--concurrency", "2", "--requests", "4", "--slo", "ttft=20s", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "4 of 4 requests ok" in done.stdout
    assert "goodput" in done.stdout
    assert len(read_records(out / "records.jsonl")) == 4
    assert orjson.loads((out / "summary.json").read_bytes())["summary"]["ok"] == 4


def test_results_go_to_a_directory_of_their_own(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.models = ("org/model name",)
    monkeypatch.chdir(tmp_path)
    assert bench(fake.url, "--concurrency", "1", "--requests", "1").exit_code == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.endswith("Z-org-model-name")
    assert {path.name for path in directory.iterdir()} == {"records.jsonl", "summary.json"}


def test_json_is_all_there_is_on_stdout(fake: FakeEngine, tmp_path: Path) -> None:
    done = bench(fake.url, "--rate", "50", "--requests", "3", "--json", "--out", str(tmp_path))
    assert orjson.loads(done.stdout)["summary"]["is_open_loop"] is True


def test_a_key_is_sent_and_written_nowhere(fake: FakeEngine, tmp_path: Path) -> None:
    done = bench(fake.url, "--concurrency", "1", "--requests", "1", "--api-key", "sk-secret", "--out", str(tmp_path))
    assert "Bearer sk-secret" in fake.seen[0].headers.values()
    assert "sk-secret" not in done.output
    assert all(b"sk-secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_run_in_which_everything_failed_is_a_failure(fake: FakeEngine, tmp_path: Path) -> None:
    fake.default = json_answer({"error": {"message": "no memory left"}}, status=503)
    done = bench(fake.url, "--concurrency", "1", "--requests", "2", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "2 x http_error 503: no memory left" in done.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "give a rate"),
        (("--rate", "1", "--concurrency", "1"), "both given"),
        (("--rate", "-1"), "rate must be"),
        (("--concurrency", "1", "--slo", "ttfb=1"), "ttfb"),
        (("--concurrency", "1", "--model", "other"), "it serves fake"),
        (("--concurrency", "1", "--prompt-tokens", "2"), "at least 8"),
        (("--rate", "1", "--arrivals", "gamma"), "poisson, constant"),
    ],
)
def test_bad_input_is_one_line_and_two(fake: FakeEngine, words: tuple[str, ...], reason: str) -> None:
    done = bench(fake.url, *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("berth bench: ")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert fake.seen == []


def test_a_server_that_is_not_there_is_one_line_and_two() -> None:
    done = bench("http://127.0.0.1:1", "--concurrency", "1")
    assert done.exit_code == 2
    assert "cannot reach http://127.0.0.1:1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_reports_what_there_is(fake: FakeEngine, tmp_path: Path) -> None:
    fake.enqueue(chat_stream(), chat_stream())
    fake.default = chat_stream(ending="hang")
    command = "from serving.commands.bench import app; app()"
    words = ["run", fake.url, "--concurrency", "1", "--warmup", "0", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if len(fake.seen) == 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "INTERRUPTED" in stdout
    assert "Traceback" not in stderr
    assert len(read_records(tmp_path / "records.jsonl")) == 2
    assert orjson.loads((tmp_path / "summary.json").read_bytes())["given_up"] == 1
