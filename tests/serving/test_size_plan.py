"""`berth size plan` as it is typed: ranked ways, why not the others, exit status."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.commands.size_plan import plan
from serving.config import ModelSection
from serving.placement import Folders, place
from sizing.config_json import parse_config
from sizing.detect import Machine
from sizing.gpu import gpu
from sizing.islands import like_cards
from tests.sizing.models import SMOLLM2, published_configs

app = typer.Typer()
app.command()(plan)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    return str(tmp_path)


def run(*args: str, columns: int = 190) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args), env={"COLUMNS": str(columns)})
    return result.exit_code, result.stdout, result.stderr


def test_the_first_way_is_what_the_json_says_first(folder: str) -> None:
    status, out, err = run(folder, "--cards", "2xL4", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    first = document["ranked"][0]
    assert first["cards"] == ["L4"]  # one card is enough for 135M parameters
    assert first["answer"]["fits"]
    assert {way["what"] for way in document["why_not"]} >= {way["on"] for way in document["ranked"][1:]}


@pytest.mark.parametrize("columns", [40, 60, 80, 95, 100, 110, 150])
def test_no_figure_is_broken_over_two_lines(llama_70b: str, columns: int) -> None:
    asked = (llama_70b, "--cards", "8xH100", "--max-model-len", "8192")
    document = json.loads(run(*asked, "--json")[1])
    _, out, _ = run(*asked, columns=columns)
    shown = [line for line in out.splitlines() if not line.startswith("not ")]  # those are for the terminal to wrap
    assert max(len(line) for line in shown) <= columns
    for way in document["ranked"]:
        tokens = way["replicas"] * way["answer"]["kv_cache_tokens"]
        assert any(f"{tokens:,}" in line for line in shown)
        assert any(f"{way['output_tokens_s']:,.0f}" in line for line in shown)


def test_what_falls_short_is_said(folder: str) -> None:
    status, out, _ = run(folder, "--cards", "L4", "--concurrency", "1000000", "--json")
    assert status == 0
    assert json.loads(out)["ranked"][0]["shortfall"].endswith("not 1,000,000")


def test_cards_that_are_too_small_are_status_1_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_configs()["meta-llama/Llama-3.1-70B-Instruct"]))
    status, out, _ = run(str(tmp_path), "--cards", "L4")
    assert status == 1
    assert "not 1 x L4: " in out


def test_cards_that_are_named_twice_are_more_of_the_same(folder: str) -> None:
    """Taken for the same two cards again, half of them could not be used, and 4 were refused because "there are 4"."""
    asked = ("--max-model-len", "8192", "--concurrency", "200", "--json", "--cards")
    assert run(folder, *asked, "L4,H100,L4") == run(folder, *asked, "2xL4,H100")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cards", "1000xL4"], "plan one machine of them"),
        (["--cards", ",,"], "--cards names none"),
        (["--cards", "L5"], "did you mean L4"),
        (["--cards", "L4", "--vllm-version", "newest"], "'newest' is no version of vLLM"),
        (["--cards", "L4", "--vllm-version", "0.2"], "older than what is sized; ask for 0.6"),
        (["--cards", "L4", "--replicas", "0"], "--replicas is 0"),
        (["--cards", "L4", "--max-model-len", "1M"], "goes up to 8,192"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder: str, args: list[str], said: str) -> None:
    status, out, err = run(folder, *args)
    assert (status, out) == (2, "")
    assert err.startswith("berth size plan: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.fixture
def llama_70b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BERTH_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_configs()["meta-llama/Llama-3.1-70B-Instruct"]))
    return str(folder)


def test_the_first_way_is_the_one_serve_takes(llama_70b: str) -> None:
    status, out, err = run(llama_70b, "--cards", "4xH100", "--max-model-len", "8k", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    first = document["ranked"][0]
    assert (first["cards"], first["answer"]["settings"]["tensor_parallel_size"]) == (["H100"] * 4, 4)
    assert first["certain"] is True
    assert first["shortfall"] is None
    reasons = {each["what"]: each["why"] for each in document["why_not"]}
    assert "does not divide the 64 attention heads" in reasons["3 x H100, tensor_parallel_size 3"]


@pytest.mark.parametrize(
    ("name", "cards"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "8xH100"),
        ("meta-llama/Llama-3.1-8B-Instruct", "L4,H100"),
        ("Qwen/Qwen3-0.6B", "8xT4"),
        ("Qwen/Qwen3-30B-A3B", "2xRTX4090"),
        ("openai/gpt-oss-120b", "H100"),
    ],
)
def test_with_no_load_named_serve_takes_the_same(tmp_path: Path, name: str, cards: str) -> None:
    """16 requests were taken for 16 of the whole context: an 8B needed four H100s, which serve put on one."""
    config = published_configs()[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, out, _ = run(str(tmp_path), "--cards", cards, "--json")
    first = json.loads(out)["ranked"][0]
    named = [re.fullmatch(r"(?:(\d+)x)?(.+)", part) for part in cards.split(",")]
    gpus = [card for each in named if each for card in like_cards(gpu(each[2]), int(each[1] or 1))]
    numbered = tuple(replace(card, index=number) for number, card in enumerate(gpus))
    machine = Machine(gpus=numbered, cpu=replace(gpus[0], kind="cpu"), cpu_count=1)
    model = ModelSection(model="some/model"), parse_config(config, name=name)
    (placed,) = place([model], machine, (0,), Folders(tmp_path, tmp_path))
    assert placed.where.partition(" ")[0] == first["cards"][0]
    assert len(placed.spec.env["CUDA_VISIBLE_DEVICES"].split(",")) == len(first["cards"])
    for setting in ("tensor_parallel_size", "max_model_len", "max_num_seqs", "gpu_memory_utilization"):
        assert first["answer"]["settings"][setting] == getattr(placed.spec.settings, setting)
    assert first["shortfall"] is None


def test_how_long_a_request_is_counts_where_no_context_is_asked_for(folder: str) -> None:
    def first(*args: str) -> dict[str, int]:
        found: dict[str, int] = json.loads(run(folder, "--cards", "L4", "--json", *args)[1])["ranked"][0]
        return found

    usual, longer = first(), first("--prompt-tokens", "2304")
    assert (usual["request_tokens"], longer["request_tokens"]) == (1280, 2560)
    assert usual["requests"] == longer["requests"] == 256  # max_num_seqs: the card holds more
    asked = first("--max-model-len", "8192")
    assert asked["request_tokens"] == 8192
    assert asked["requests"] < 256


def test_every_other_way_has_its_reason(llama_70b: str) -> None:
    status, out, _ = run(llama_70b, "--cards", "2xRTX4090", "--max-model-len", "8k")
    assert status == 1
    assert "Ways that work" not in out
    assert "not 2 x RTX4090, tensor_parallel_size 2: weights and work take" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cards", "H100", "--concurrency", "0"], "concurrency is 0"),
        (["--cards", "H100", "--slo", "speed=1"], "is no bound"),
        ([], "this machine has no GPU"),
    ],
)
def test_impossible_loads_are_one_line(llama_70b: str, args: list[str], said: str) -> None:
    status, out, err = run(llama_70b, *args)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
