"""The evaluation of speed: which rows it takes, how it splits them, and what it writes."""

import json
from pathlib import Path

import pytest

from benchmarks.sizing_speed import (
    BLIND_CONFIGS,
    BLIND_ROWS,
    OWN_CONFIGS,
    OWN_ROWS,
    in_fit_half,
    main,
    within_bands,
)
from benchmarks.speed_rows import measurement, read_rows
from benchmarks.statistics import percentile
from tests.sizing.models import published_configs

PUBLISHED = published_configs()
CONFIGS = {
    "gpt-oss-120b": PUBLISHED["openai/gpt-oss-120b"],
    "MiniMax-M2.5": PUBLISHED["MiniMaxAI/MiniMax-M2.5"],
    "Llama-3.1-70B": PUBLISHED["meta-llama/Llama-3.1-70B-Instruct"],
}
ROW: dict[str, object] = {  # ai-dynamo/aiconfigurator, systems/silicon_sample.csv
    "id": "gpt_oss_120b_b200_1024x1024_c4",
    "model": "gpt-oss-120b",
    "gpu": "b200_sxm",
    "precision": "fp4",
    "gemm_quant": "nvfp4",
    "moe_quant": "nvfp4",
    "tp": 1,
    "pp": 1,
    "attention_dp": 1,
    "moe_tp": "1",
    "moe_ep": "1",
    "concurrency": 4,
    "isl": 1024,
    "osl": 1024,
    "ttft_ms": 46.33,
    "tpot_ms": 3.487,
}
MINIMAX = {**ROW, "id": "minimax", "model": "MiniMax-M2.5", "gpu": "h200_sxm", "moe_quant": "fp8", "tp": 8} | {
    "concurrency": 128,
    "ttft_ms": 246.54,
    "tpot_ms": 23.722,
}


def files(folder: Path, rows: object) -> list[str]:
    (folder / "perf.json").write_text(json.dumps(rows))
    (folder / "configs.json").write_text(json.dumps(CONFIGS))
    return ["--perf", str(folder / "perf.json"), "--configs", str(folder / "configs.json"), "--alone"]


def test_a_row_becomes_a_measurement() -> None:
    found = measurement(ROW, CONFIGS)
    assert found.shape.expert_format == "mxfp4"  # which the table calls nvfp4
    assert found.engine.card.name == "B200"
    assert (found.ttft_s, found.tpot_s) == pytest.approx((0.04633, 0.003487))
    assert found.output_tokens_s == pytest.approx(4 * 1024 / (0.04633 + 0.003487 * 1023))


def test_experts_on_more_cards_than_stated_mean_replicas_beside() -> None:
    found = measurement({**ROW, "moe_tp": "4", "concurrency": 5}, CONFIGS)
    assert (found.engine.num_cards, found.engine.data_parallel_size, found.load.concurrency) == (4, 4, 20)
    stated = measurement({**ROW, "tp": 2, "attention_dp": 2, "moe_ep": "4", "concurrency": 64}, CONFIGS)
    assert (stated.engine.num_cards, stated.load.concurrency) == (4, 64)


def test_dense_rows_go_by_their_matrix_format() -> None:
    found = measurement({**ROW, "model": "Llama-3.1-70B", "gemm_quant": "fp8"}, CONFIGS)
    assert found.shape.dense_format == "fp8"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"concurrency": None}, "no concurrency stated"),
        ({"gpu": None}, "no card stated"),
        ({"gpu": "x100_sxm"}, "no GPU called"),
        ({"model": "other"}, "no config.json of other"),
        ({"tp": "two"}, "tp is 'two'"),
        ({"moe_quant": "ternary"}, "weights in ternary are not known"),
        ({"dataset": "1000 prompts, request-rate inf"}, "no steady load"),
    ],
)
def test_what_cannot_be_predicted_is_counted_with_its_reason(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    perf, configs = (Path(name) for name in files(tmp_path, [ROW, {**ROW, **change}])[1:4:2])
    found = read_rows([perf], [configs])
    assert len(found.measurements) == 1
    assert [count for text, count in found.left_out.items() if reason in text] == [1]


def test_the_table_and_one_line_per_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    assert main([*files(tmp_path, [ROW, MINIMAX]), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2 rows predicted" in shown
    assert "Shipped table" in shown
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [ROW["id"], "minimax"]
    for line in lines:
        assert line["half"] in ("fit", "check")
        figure = line["tpot_s"]
        assert figure["error"] == pytest.approx(figure["prediction"] / figure["truth"] - 1)
        assert figure["band"][0] < figure["prediction"] < figure["band"][1]


def test_the_split_is_by_group_and_always_the_same() -> None:
    first, second = measurement(ROW, CONFIGS), measurement({**ROW, "concurrency": 64, "isl": 8192}, CONFIGS)
    assert in_fit_half(first) is in_fit_half(second)


def test_percentiles_are_interpolated() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([0, 10], 0.9) == pytest.approx(9)


def test_stages_and_single_steps_are_read() -> None:
    staged = measurement({**ROW, "pp": 2}, CONFIGS)
    assert (staged.engine.pipeline_parallel_size, staged.engine.num_cards) == (2, 2)
    step = measurement({**ROW, "ttft_ms": None, "tpot_ms": None, "step_ms": 5.0}, CONFIGS)
    assert (step.ttft_s, step.tpot_s, step.step_s, step.output_tokens_s) == (None, None, 0.005, None)


def test_a_cache_that_could_not_have_fitted_in_16_bits_was_in_fp8() -> None:
    """256 x 8,704 tokens x 62 layers x 8 heads x 256 x 2 bytes over two cards are 283 GB on each, beside 115 GB."""
    full = measurement({**MINIMAX, "gpu": "b300_sxm", "tp": 2, "concurrency": 256, "isl": 8192}, CONFIGS)
    assert full.shape.kv_bytes(1, 1) == 62 * 8 * 256
    few = measurement({**MINIMAX, "gpu": "b300_sxm", "tp": 2, "concurrency": 4, "isl": 8192}, CONFIGS)
    assert few.shape.kv_bytes(1, 1) == 62 * 8 * 256 * 2


def test_the_public_rows_are_all_read_and_have_their_source() -> None:
    found = read_rows([OWN_ROWS], [OWN_CONFIGS])
    assert not found.left_out
    assert len(found.measurements) == len(OWN_ROWS.read_text().splitlines())
    for text in OWN_ROWS.read_text().splitlines():
        assert len(json.loads(text)["source"]) > 20


def test_blind_rows_share_no_model_on_a_card_with_fitted_ones() -> None:
    blind = read_rows([BLIND_ROWS], [BLIND_CONFIGS, OWN_CONFIGS])
    assert not blind.left_out
    assert len(blind.measurements) == 19
    fitted = {row.group for row in read_rows([OWN_ROWS], [OWN_CONFIGS]).measurements}
    assert not fitted & {row.group for row in blind.measurements}
    told = within_bands(blind.measurements)
    assert told == "TTFT 7 of 8, TPOT 17 of 17, output tokens/s 7 of 7"


def test_nothing_readable_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--perf", str(tmp_path / "none"), "--configs", str(tmp_path / "none"), "--alone"]) == 2
    assert main(files(tmp_path, {"not": "a list"})) == 2
    assert main(files(tmp_path, [{**ROW, "tp": 0}])) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "cannot read" in errors[0]
    assert "list of runs" in errors[1]
    assert "no row of" in errors[2]
