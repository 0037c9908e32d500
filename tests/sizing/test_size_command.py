"""`berth size` as it is typed: exit status, one line on standard error, JSON on standard output."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.commands.flags import token_flag
from serving.commands.size import detected, size
from sizing.detect import Machine
from sizing.errors import QuestionError
from sizing.gpu import GIB, Device
from tests.sizing.models import SMOLLM2, published_configs, smollm2_tensors, write_safetensors

app = typer.Typer()
app.command()(size)


@pytest.fixture
def smollm2_folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    write_safetensors(tmp_path / "model.safetensors", smollm2_tensors())
    return str(tmp_path)


@pytest.fixture
def llama_70b_folder(tmp_path: Path) -> str:
    """A config alone: nothing is downloaded to know that it is too large."""
    (tmp_path / "config.json").write_text(json.dumps(published_configs()["meta-llama/Llama-3.1-70B-Instruct"]))
    return str(tmp_path)


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, result.stdout, result.stderr


def test_a_model_that_fits(smollm2_folder: str) -> None:
    status, out, err = run(smollm2_folder, "--gpu", "L4")
    assert (status, err) == (0, "")
    assert "weights" in out
    logged = re.search(
        r"GPU KV cache size: ([\d,]+) tokens, Maximum concurrency for 8,192 tokens per request: (.*)x", out
    )
    assert logged is not None
    tokens = int(logged[1].replace(",", ""))
    assert 850_000 < tokens < 900_000  # 0.92 of 22.03 GiB less 1.3, at 23,040 bytes a token
    assert f"{tokens / 8192:.2f}" == logged[2]
    assert f"Yes: {tokens // 8192} requests" in out
    assert "Speed at 1,024 tokens in and 256 out" in out


def test_a_card_of_no_catalogue_by_its_memory(smollm2_folder: str) -> None:
    status, out, err = run(smollm2_folder, "--gpu", "Voodoo 2", "--gpu-total-gib", "24", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["device"]["memory_bytes"] == 24 * GIB
    assert document["speed"] is None  # nothing is known of how fast it is


def test_many_questions_are_answered_line_by_line(smollm2_folder: str, tmp_path: Path) -> None:
    asked = tmp_path / "questions.jsonl"
    rows = [
        {"id": "a", "model": smollm2_folder, "gpu": "L4"},
        {"id": "b", "model": smollm2_folder, "gpu": "L5"},
        {"id": "c", "config": SMOLLM2, "gpu": "A100 80GB", "tp": 1, "gmu": 0.5, "vllm": "0.11.0", "kv_tokens": 7},
        {"id": "d", "modle": "x"},
    ]
    asked.write_text("\n".join([*(json.dumps(row) for row in rows), "not JSON"]))
    status, out, err = run("--questions", str(asked), "--json")
    assert (status, err) == (2, "")  # some could not be answered, and said so
    answers = [json.loads(line) for line in out.splitlines()]
    assert [line["line"] for line in answers] == [1, 2, 3, 4, 5]
    assert answers[0]["answer"]["fits"] is True
    assert "did you mean L4" in answers[1]["error"]
    assert answers[2]["answer"]["release"] == {"version": "0.11.0", "known": True}
    assert answers[2]["answer"]["settings"]["gpu_memory_utilization"] == 0.5
    assert "did you mean 'model'?" in answers[3]["error"]
    assert "not JSON" in answers[4]["error"]
    status, table, _ = run("--questions", str(asked))
    assert status == 2
    assert "line 4: 'modle' is not part of a question" in table


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"max_model_len": NaN}', "max_model_len is not a number"),
        ('{"max_model_len": 1e309}', "max_model_len is too large"),
        (f'{{"max_model_len": {10**400}}}', "max_model_len is too large"),
        ('{"gmu": 0}', "gpu_memory_utilization is 0.0"),
        ('{"pp": 0}', "pipeline_parallel_size is 0"),
        ('{"tp": 1, "tensor_parallel_size": 2}', "tensor_parallel_size is said twice, as 1 and as 2"),
        ("[" * 100_000, "not JSON"),
        ('{"model": "", "config": null}', "the question names no model"),
    ],
)
def test_a_bad_line_costs_no_other_line_its_answer(tmp_path: Path, row: str, said: str) -> None:
    asks = f'"gpu": "L4", "config": {json.dumps(SMOLLM2)}'
    good = f'{{"id": 123456789012345678901234567890, "model": "\\ud800", {asks}}}'
    row = row.replace("{", f"{{{asks}, ", 1)
    asked = tmp_path / "questions.jsonl"
    asked.write_text(f"\ufeff{good}\r\n\r\n{row}\r\n{good}", encoding="utf-8")
    status, out, err = run("--questions", str(asked), "--json")
    assert (status, err) == (2, "")
    first, bad, last = (json.loads(line) for line in out.splitlines())
    assert (first["line"], bad["line"], last["line"]) == (1, 3, 4)
    assert first["answer"] == last["answer"]
    assert first["id"] == 123456789012345678901234567890
    assert said in bad["error"]
    assert run("--questions", str(asked))[0] == 2


def test_a_file_without_questions_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    status, out, err = run("--questions", str(tmp_path / "empty.jsonl"), "--json")
    assert (status, out) == (2, "")
    assert "holds no questions; write one JSON object per line" in err


def test_of_a_mixed_box_the_limiting_rank_is_meant(tmp_path: Path) -> None:
    asked = tmp_path / "questions.jsonl"
    asked.write_text(json.dumps({"config": SMOLLM2, "gpu": "RTX 3060 12GB (limiting rank) + RTX 5090"}))
    assert json.loads(run("--questions", str(asked), "--json")[1])["answer"]["device"]["name"] == "RTX3060"


def test_auto_is_the_longest_context_that_fits(llama_70b_folder: str) -> None:
    asked = [
        json.loads(run(llama_70b_folder, "--gpu", "B200", "--json", *more)[1])["settings"]["max_model_len"]
        for more in ([], ["--max-model-len", "auto"], ["--max-model-len", "-1"])
    ]
    assert asked[0] < 131_072
    assert asked == asked[:1] * 3


def test_no_figure_is_cut_off_in_80_columns(smollm2_folder: str) -> None:
    _, out, _ = run(smollm2_folder, "--gpu", "T4", "--gpu-total-gib", "2")
    speed = out.partition("Speed at")[2]
    assert "TTFT s" in speed
    assert "…" not in speed


def test_the_page_and_the_picture_are_written(smollm2_folder: str, tmp_path: Path) -> None:
    page, picture = tmp_path / "size.html", tmp_path / "size.svg"
    status, _, err = run(smollm2_folder, "--gpu", "L4", "--html", str(page), "--svg", str(picture))
    assert (status, err) == (0, "")
    assert page.read_text().startswith("<!doctype html>")
    assert "<svg" in picture.read_text()


def test_a_model_that_does_not_fit(llama_70b_folder: str) -> None:
    status, out, err = run(llama_70b_folder, "--gpu", "H100", "--max-model-len", "8k")
    assert (status, err) == (1, "")
    assert "No: weights and work take" in out
    assert "--count 2" in out


def test_the_way_out_works(llama_70b_folder: str) -> None:
    assert run(llama_70b_folder, "--gpu", "H100", "--max-model-len", "8k", "--count", "2")[0] == 0


def test_json_on_this_machine(smollm2_folder: str) -> None:
    status, out, _ = run(smollm2_folder, "--max-model-len", "2K", "--max-num-seqs", "1", "--json")
    document = json.loads(out)
    assert status == (0 if document["fits"] else 1)
    assert document["settings"]["max_model_len"] == 2048
    assert document["model"]["weights_bytes"] == 2 * 134_515_008


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpu", "H1000"], "did you mean H100"),
        (["--gpu", "L4", "--max-model-len", "lots"], "'lots' is not a number of tokens"),
        (["--gpu", "L4", "--max-model-len", "1M"], "goes up to 8,192"),
        (["--gpu", "L4", "--count", "0"], "count is 0"),
        (["--gpu", "L4", "--tensor-parallel-size", "2", "--count", "2"], "use one of 1, 3"),
        (["--gpu", "L4", "--kv-cache-dtype", "fp3"], "'fp3' is not sized"),
        (["--gpu", "L4", "--gpu-memory-utilization", "92"], "must be above 0 and at most 1"),
        (["--count", "64"], "this machine has"),
        (["--gpu", "H100, L4"], "no GPU called 'H100, L4'"),  # two cards are not the first of them
        (["--gpu", "T4", "--dtype", "bfloat16"], "T4 has no bfloat16"),
        (["--gpu", "L4", "--block-size", "7"], "a multiple of 16"),
        (["--gpu", "T4", "--kv-cache-dtype", "nvfp4"], "needs Ampere or newer"),
        (["--gpu", "cpu"], "how much memory a processor has is not known; give gpu_total_gib"),
        (["--gpu-total-gib", "nan"], "gpu_total_gib is not a number"),
        (["--gpu-total-gib", "1e309"], "gpu_total_gib is too large"),
        (["--gpu-total-gib", "0"], "has to be a number of GiB"),
        (["--gpu", "L4", "--gpu-free-gib", "100"], "more than the 22.03 GiB of L4"),
        (["--gpu", "L4", "--gpu-memory-utilization", "0"], "must be above 0 and at most 1"),
        (["--gpu", "L4", "--pipeline-parallel-size", "0"], "pipeline_parallel_size is 0"),
        (["--gpu", "L4", "--prompt-tokens", "0"], "--prompt-tokens '0' is not a number of tokens"),
        (["--gpu", "L4", "--vllm-version", "newest"], "'newest' is no version of vLLM"),
        (["--gpu", "L4", "--configs", "c.json"], "--configs says what the models of --questions are"),
        (["--questions", "q.jsonl"], "ask about one model, or many by the file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(smollm2_folder: str, args: list[str], said: str) -> None:
    status, out, err = run(smollm2_folder, *args)
    assert (status, out) == (2, "")
    assert err.startswith("berth size: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_missing_folder_is_one_line_and_status_2(tmp_path: Path) -> None:
    status, _, err = run(str(tmp_path / "nowhere"), "--gpu", "L4")
    assert status == 2
    assert (
        err == f"berth size: no folder {tmp_path / 'nowhere'}; give a model folder, or a Hub id such as Qwen/Qwen3-8B\n"
    )


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8192", 8192), ("32k", 32_000), ("32K", 32_768), ("25.6k", 25_600), ("8,192", 8192), ("1m", 10**6)],
)
def test_tokens_are_read_as_vllm_reads_them(text: str, tokens: int) -> None:
    assert token_flag(text, "--max-model-len") == tokens


@pytest.mark.parametrize("text", ["", "k", "-2", "8 k k", "1e5", "auto"])
def test_what_is_not_a_number_of_tokens(text: str) -> None:
    with pytest.raises(QuestionError):
        token_flag(text, "--max-model-len")


def card(name: str, free_gib: int) -> Device:
    return Device("cuda", name, 80 * GIB, free_gib * GIB)


def test_the_most_numerous_cards_are_taken_and_the_fullest_speaks_for_them() -> None:
    machine = Machine((card("L4", 22), card("H100", 80), card("H100", 60)), card("cpu", 1), cpu_count=8)
    assert detected(machine) == (card("H100", 60), 2)
    assert detected(Machine((), card("cpu", 1), cpu_count=8)) == (card("cpu", 1), 1)
