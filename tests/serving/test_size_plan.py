"""`berth size plan` as it is typed: ranked ways, why not the others, exit status."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.commands.size_plan import plan
from tests.sizing.models import SMOLLM2, published_configs

app = typer.Typer()
app.command()(plan)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    return str(tmp_path)


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, result.stdout, result.stderr


def test_the_first_way_is_what_the_json_says_first(folder: str) -> None:
    status, out, err = run(folder, "--cards", "2xL4", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    first = document["ranked"][0]
    assert first["cards"] == ["L4"]  # one card is enough for 135M parameters
    assert first["answer"]["fits"]
    assert {way["what"] for way in document["why_not"]} >= {way["on"] for way in document["ranked"][1:]}


def test_what_falls_short_is_said(folder: str) -> None:
    status, out, _ = run(folder, "--cards", "L4", "--concurrency", "1000000")
    assert status == 0
    assert "holds" in out
    assert "1,000,000" in out


def test_cards_that_are_too_small_are_status_1_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_configs()["meta-llama/Llama-3.1-70B-Instruct"]))
    status, out, _ = run(str(tmp_path), "--cards", "L4")
    assert status == 1
    assert "not 1 x L4: " in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cards", "1000xL4"], "plan one machine of them"),
        (["--cards", ",,"], "--cards names none"),
        (["--cards", "L5"], "did you mean L4"),
        (["--cards", "L4", "--vllm-version", "newest"], "'newest' is no version of vLLM"),
        (["--cards", "L4", "--max-model-len", "1M"], "goes up to 8,192"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder: str, args: list[str], said: str) -> None:
    status, out, err = run(folder, *args)
    assert (status, out) == (2, "")
    assert err.startswith("berth size plan: ")
    assert err.count("\n") == 1
    assert said in err
