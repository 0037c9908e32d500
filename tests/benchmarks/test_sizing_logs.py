"""The benchmark of sizing: what it makes of a row, what it counts, and what it writes."""

import json
from pathlib import Path

import pytest

from benchmarks.errors import ConfigError
from benchmarks.sizing_logs import CONFIGS, LOGS, Checked, Figure, check, main, read_configs, read_rows, verdicts
from sizing.questions import Sources
from tests.sizing.models import published, published_configs

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SOURCES = Sources(
    load=lambda ref, revision: published(ref), machine=lambda: pytest.fail("asked"), configs=published_configs()
)
ROW: dict[str, object] = {  # llm-d's benchmark of vLLM 0.19 on H100, 8,192 tokens of context
    "id": "llama-0.19",
    "model": LLAMA,
    "vllm": "0.19.0",
    "gpu": "H100",
    "gpu_total_gib": 79.19,
    "tp": 1,
    "gmu": 0.95,
    "max_model_len": 8192,
    "max_num_seqs": 1024,
    "max_num_batched_tokens": 8192,
    "load_gib": 14.99,
    "kv_gib": 58.11,
    "kv_tokens": 476_016,
    "complete": True,
}


def test_a_row_is_compared_in_every_figure_it_has() -> None:
    found = check(ROW, SOURCES)
    assert (found.half, found.fits, found.started, found.left_out) == ("check", True, True, None)
    for figure in (found.weights_gib, found.page_tokens, found.kv_tokens, found.kv_gib):
        assert figure is not None
        assert abs(figure.error) < 0.003
        assert figure.band[0] <= figure.truth <= figure.band[1]
    assert found.kv_tokens is not None
    assert found.kv_tokens.error == found.kv_tokens.prediction / 476_016 - 1


def test_the_prediction_never_sees_the_log() -> None:
    lied = check({**ROW, "kv_tokens": 1000, "load_gib": 1.0, "kv_gib": 3.0}, SOURCES)
    honest = check(ROW, SOURCES)
    assert lied.kv_tokens is not None
    assert honest.kv_tokens is not None
    assert lied.kv_tokens.prediction == honest.kv_tokens.prediction
    assert lied.kv_tokens.error > 400


def test_rows_that_cannot_be_compared_say_why() -> None:
    no_card = check({key: value for key, value in ROW.items() if not key.startswith("gpu")}, SOURCES)
    assert (no_card.left_out, no_card.kv_tokens) == ("no card stated", None)
    assert no_card.page_tokens is not None  # the rules of pages need none
    no_share = check({**ROW, "gmu": None}, SOURCES)
    assert no_share.left_out == "gpu_memory_utilization not stated"
    unknown = check({**ROW, "dtype": "int3"}, SOURCES)
    assert unknown.left_out is not None
    assert "int3" in unknown.left_out
    shared = check({**ROW, "unified_memory": True}, SOURCES)
    assert (shared.discrete, shared.kv_tokens) == (False, None)
    staged = check({**ROW, "pp": 2}, SOURCES)
    assert staged.page_tokens is None  # one stage's memory, and not always the one that decides


def test_a_refusal_is_told_from_a_start() -> None:
    refused = check({**ROW, "outcome": "refused: too long", "max_model_len": 131_072, "gmu": 0.3}, SOURCES)
    assert (refused.fits, refused.started) == (False, False)
    text = verdicts([check(ROW, SOURCES), refused, Checked("odd", "check", True, False, fits=True, started=False)])
    assert text.startswith("yes or no: 1 runs that started, 0 of them told no; 2 refused")
    assert text.endswith("wrong yes: odd")


def test_files_of_both_forms_and_bad_lines(tmp_path: Path) -> None:
    listed, lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    listed.write_text(json.dumps([ROW]))
    lines.write_text(json.dumps(ROW) + "\n\n")
    assert read_rows([listed, lines]) == [ROW, ROW]
    lines.write_text("{}\nnot JSON\n")
    with pytest.raises(ConfigError, match=r"b\.jsonl line 2 is not JSON"):
        read_rows([lines])


def test_one_json_line_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs, configs, out = tmp_path / "rows.json", tmp_path / "configs.json", tmp_path / "deep" / "out.jsonl"
    logs.write_text(json.dumps([ROW, {**ROW, "id": "b", "model": "no/such"}]))
    configs.write_text(json.dumps({LLAMA: published_configs()[LLAMA]}))
    assert main(["--logs", str(logs), "--configs", str(configs), "--out", str(out)]) == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert set(first["kv_tokens"]) == {"prediction", "truth", "error", "band"}
    assert first["kv_tokens"]["truth"] == 476_016
    assert "no config.json of no/such" in second["left_out"]
    assert "KV tokens end to end" in capsys.readouterr().out
    assert main(["--logs", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.startswith("bench-sizing: cannot read")


def test_the_shipped_logs_are_whole() -> None:
    rows, configs = read_rows(LOGS), read_configs(CONFIGS)
    assert len({str(row["id"]) for row in rows}) == len(rows)
    assert {row["half"] for row in rows} == {"fit", "check"}
    assert all(row.get("source") for row in rows)
    halves: dict[object, object] = {}
    for row in rows:  # a source is never on both sides
        assert halves.setdefault(row["source"], row["half"]) == row["half"]
    assert len(configs) > 50


def test_an_error_is_relative_to_the_truth() -> None:
    assert Figure(110.0, 100.0, (90.0, 120.0)).error == pytest.approx(0.1)
