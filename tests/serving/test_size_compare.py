"""`berth size compare` as it is typed: the table, JSON under the schema, the two files, one line for what is wrong."""

import json
from datetime import date
from pathlib import Path

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from serving.calibration_table import table_path
from serving.commands.flags import latency_bound, parse_api_price
from serving.commands.size_compare import compare
from serving.environment import Environment
from sizing.calibration import Calibration, Observation, save_calibration
from sizing.cost import ApiPrice
from sizing.document import schema_text
from sizing.errors import QuestionError
from sizing.gpu import GIB
from sizing.users import LatencyBound
from tests.sizing.models import published_configs

app = typer.Typer()
app.command()(compare)


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "Llama-3.1-8B-Instruct"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_configs()["meta-llama/Llama-3.1-8B-Instruct"]))
    return str(folder)


def run(*args: str, columns: int = 190) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args), env={"COLUMNS": str(columns)})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("columns", [60, 190])
def test_cards_side_by_side(llama_8b: str, columns: int) -> None:
    status, out, err = run(
        *(llama_8b, "--gpus", "T4,L4,2xH100", "--slo", "ttft=2,tpot=0.05", "--users", "300", "--api-price", "0.5,1.5"),
        columns=columns,
    )
    assert (status, err) == (0, "")
    for said in ("T4", "L4", "2xH100", "KV tokens", "TTFT", "users within SLO", "engine", "$/h", "2026-11-09", "* $"):
        assert said in out
    assert max(len(line) for line in out.splitlines()) <= columns


def test_json_under_the_schema(llama_8b: str) -> None:
    status, out, _ = run(llama_8b, "--gpus", "L4,H100", "--slo", "tpot=50ms", "--json")
    document = json.loads(out)
    assert status == 0
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(document)
    assert document["workload"]["slo"] == {"ttft_s": None, "tpot_s": 0.05, "percentile": 0.9}
    assert document["rows"][0]["answer"]["settings"]["max_model_len"] == 1024 + 256
    assert document["best"]["kv_cache_tokens"] == [1]


def test_the_users_own_starts_count_as_for_one_card(
    llama_8b: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`berth size` and `plan` went by the table that `calibrate` keeps, and this did not."""
    monkeypatch.setenv("BERTH_STATE_DIR", str(tmp_path))

    def kv_bytes() -> int:
        (row,) = json.loads(run(llama_8b, "--gpus", "L40S", "--json")[1])["rows"]
        found: int = row["answer"]["kv_cache_bytes"]
        return found

    plain = kv_bytes()
    start = Observation(
        term="KV cache",
        gpu="L40S",
        link="pcie",
        tensor_parallel_size=1,
        release="0.32.0",
        predicted_bytes=plain,
        measured_bytes=plain - GIB,
        model=llama_8b,
        as_of=date(2026, 12, 1),
    )
    save_calibration(table_path(Environment()), Calibration((start,)))
    assert (plain - kv_bytes()) / GIB == pytest.approx(2 / 3, abs=1e-6)  # one start is believed by 1 / 1.5


def test_the_command_of_the_issue_names_a_card_of_two_sizes(llama_8b: str) -> None:
    status, out, _ = run(llama_8b, "--gpus", "L4,A100,H100,H200", "--json")
    assert status == 0
    cards = [row["option"] for row in json.loads(out)["rows"]]
    assert len(cards) == 5


def test_both_files_are_written(llama_8b: str, tmp_path: Path) -> None:
    page, picture = tmp_path / "cards.html", tmp_path / "cards.svg"
    status, _, _ = run(llama_8b, "--gpus", "L4,H100", "--html", str(page), "--svg", str(picture))
    assert status == 0
    assert page.read_text().startswith("<!doctype html>")
    assert picture.read_text().startswith("<svg ")


def test_no_card_is_enough(llama_8b: str) -> None:
    status, out, _ = run(llama_8b, "--gpus", "T4")
    assert status == 1
    assert "Does not fit; try" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpus", "H1000"], "did you mean H100"),
        (["--gpus", ","], "no cards to compare"),
        (["--gpus", "L4", "--slo", "latency=2"], "write ttft=2,tpot=0.05"),
        (["--gpus", "L4", "--api-price", "cheap"], "is not two amounts"),
        (["--gpus", "L4", "--concurrency", "0"], "--concurrency is 0"),
        (["--gpus", "L4", "--users", "100"], "--users are served within bounds; name them by --slo"),
        (["--gpus", "L4", "--think-time", "-1"], "--think-time is -1"),
        (["--gpus", "L4", "--prompt-tokens", "many"], "--prompt-tokens 'many'"),
        (["--gpus", "L4", "--slo", "ttft=1", "--slo-percentile", "90"], "slo_percentile is 90"),
        (["--gpus", "L4", "--max-model-len", "1m"], "goes up to 131,072"),
        (["--gpus", "H100", "--html", "/nowhere/page.html"], "cannot write /nowhere/page.html"),
    ],
)
def test_bad_input_is_one_line_and_status_2(llama_8b: str, args: list[str], said: str) -> None:
    status, out, err = run(llama_8b, *args)
    assert (status, out) == (2, "")
    assert err.startswith("berth size compare: ")
    assert err.count("\n") == 1
    assert said in err


def test_bounds_and_prices_as_people_write_them() -> None:
    assert latency_bound("ttft=800ms, tpot=0.05") == LatencyBound(0.8, 0.05)
    assert latency_bound("tpot=50ms") == LatencyBound(None, 0.05)
    assert parse_api_price("$0.5, 1.5") == ApiPrice(0.5, 1.5)
    for wrong in ("ttft", "ttft=0", "ttft=fast", ""):
        with pytest.raises(QuestionError):
            latency_bound(wrong)


def test_more_models_make_a_matrix(llama_8b: str, tmp_path: Path) -> None:
    other = tmp_path / "Llama-3.1-70B-Instruct"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(published_configs()["meta-llama/Llama-3.1-70B-Instruct"]))
    status, out, _ = run(llama_8b, "--gpus", "L4,4xH100", "--also", str(other), "--json")
    matrix = json.loads(out)["matrices"][-1]
    assert status == 0
    assert matrix["columns"] == ["L4", "4xH100"]
    assert [[cell["verdict"] for cell in row] for row in matrix["cells"]] == [["fits", "fits"], ["no", "fits"]]
