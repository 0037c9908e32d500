"""`berth size calibrate` as it is typed: tables for people, JSON for programs, one line for what cannot be used."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.commands.calibrate import calibrate
from sizing.calibration import load_calibration
from tests.serving.test_calibrating import DATA, GPU_LOG
from tests.sizing.models import SMOLLM2, published_configs, smollm2_tensors, write_safetensors

app = typer.Typer()
app.command()(calibrate)


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(published_configs()["meta-llama/Llama-3.1-8B-Instruct"]))
    return str(file)


@pytest.fixture
def log(tmp_path: Path) -> str:
    file = tmp_path / "logs" / "run" / "0-model-0.log"
    file.parent.mkdir(parents=True)
    file.write_text(GPU_LOG.format(model="/nowhere/model"))
    return str(file)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.json"


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def test_a_log_refits_the_table_and_the_errors_shrink(log: str, config: str, table: Path) -> None:
    status, out, err = run(log, "--model", config, "--gpu", "H100", "--table", table, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert (document["written"], document["left_out"]) == (True, [])
    for row in document["observations"]:
        before = abs(row["predicted_bytes"] - row["measured_bytes"])
        assert abs(row["corrected_bytes"] - row["measured_bytes"]) <= before
        assert row["starts"] == 1
    terms = {row["term"] for row in document["observations"]}
    assert {"weights", "activations", "non-torch"} <= terms
    assert {entry.term for entry in load_calibration(table).entries} == terms


def test_people_see_every_term_and_where_the_table_is(log: str, config: str, table: Path) -> None:
    status, out, err = run(log, "--model", config, "--gpu", "h100", "--table", table, "--dry-run")
    assert (status, err) == (0, "")
    assert "on H100, vLLM 0.26.0" in out
    assert "weights" in out
    assert "15.02" in out
    assert f"Table: {table}, " in out
    assert "not written (--dry-run)" in out
    assert not table.exists()


def test_a_folder_of_logs_and_a_second_reading_of_one_start(log: str, config: str, table: Path) -> None:
    folder = Path(log).parents[1]
    (folder / "other.log").write_text("nothing of vLLM's\n")
    args = (folder, log, "--model", config, "--gpu", "H100", "--table", table)
    assert run(*args)[0] == 0
    status, out, _ = run(*args, "--json")
    assert status == 0
    assert json.loads(out)["left_out"] == [
        {"log": str(folder / "other.log"), "reason": json.loads(out)["left_out"][0]["reason"]}
    ]
    assert "no vLLM start-up lines" in json.loads(out)["left_out"][0]["reason"]
    weights = [entry for entry in load_calibration(table).entries if entry.term == "weights"]
    assert len(weights) == 1


def test_a_real_processors_log(tmp_path: Path, table: Path) -> None:
    model = tmp_path / "smollm2"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SMOLLM2))
    write_safetensors(model / "model.safetensors", smollm2_tensors())
    args = (DATA / "vllm_cpu_0.32_startup.log", "--model", model, "--table", table)
    status, out, err = run(*args, "--json")
    assert (status, err) == (0, "")
    (row,) = json.loads(out)["observations"]
    rotary_bytes = 8192 * 64 * 2
    assert (row["term"], row["gpu"], row["predicted_bytes"]) == ("weights", "cpu", 2 * 134_515_008 + rotary_bytes)
    assert row["corrected_bytes"] == row["predicted_bytes"]  # 0.25 GiB says no more


def test_rows_of_records_are_read_as_they_are(tmp_path: Path, config: str, table: Path) -> None:
    row = {"id": "x", "model": "unknown/id", "vllm": "0.19.0", "gpu": "L4", "tp": 1, "load_gib": 15.1, "note": "-"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({**row, "gpu": name}) for name in ("L4", "Voodoo 2")))
    status, out, _ = run(rows, "--model", config, "--table", table, "--json")
    assert status == 0
    document = json.loads(out)
    assert [(row["term"], row["gpu"]) for row in document["observations"]] == [("weights", "L4")]
    assert "no GPU called 'Voodoo 2'" in document["left_out"][0]["reason"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["{log}", "--model", "{config}"], "does not name its card; give --gpu"),
        (["{log}", "--gpu", "H100"], "no folder /nowhere/model"),
        (["{log}", "--gpu", "H1000", "--model", "{config}"], "did you mean H100"),
        (["{config}x"], "cannot be read"),
        (["{folder}"], "no *.log in this folder"),
        (["{log}", "--gpu", "H100", "--model", "{log}"], "not a config.json"),
        (["{log}", "--gpu", "H100", "--model", "{config}", "--table", "{log}"], "not a calibration table"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(
    tmp_path: Path, log: str, config: str, args: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    known = {"log": log, "config": config, "folder": tmp_path / "empty"}
    status, out, err = run(*(arg.format(**known) for arg in args), "--dry-run")
    assert (status, out) == (2, "")
    assert err.startswith("berth size calibrate: ")
    assert err.count("\n") == 1
    assert said in err
