"""The report: every term of the sum, vLLM's own log line, and JSON with the keys that are promised."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from sizing.config_json import parse_config
from sizing.gpu import GIB, Device, gpu
from sizing.plan import answer
from sizing.question import Question
from sizing.release import parse_release
from sizing.report import as_json, log_line, render
from sizing.sheet import answer_sheet
from tests.sizing.models import SMOLLM2, published, smollm2

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
CPU = Device("cpu", "x86_64", 16 * GIB, 16 * GIB)


def printed(question: Question, width: int = 60) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(render(question, answer(question)), soft_wrap=True)
    return screen.getvalue()


def test_the_log_line_is_vllms_to_the_letter() -> None:
    question = Question(smollm2(), CPU, max_model_len=2048, kv_cache_memory_bytes=268_435_456)
    expected = "CPU KV cache size: 11,648 tokens, Maximum concurrency for 2,048 tokens per request: 5.69x"
    assert log_line(question, answer(question)) == expected
    assert any(line.startswith(expected) for line in printed(question).splitlines())  # unbroken on a narrow screen


def test_a_yes_shows_every_term_and_the_requests() -> None:
    question = Question(LLAMA_8B, gpu("H100"))
    screen = printed(question)
    for term in answer(question).terms:
        assert term.name in screen
        assert f"{term.bytes / GIB:.2f}" in screen
    assert "GPU KV cache size: " in screen
    assert "Yes: 3 requests of 131,072 tokens at once" in screen


def test_a_yes_to_an_assumed_architecture_says_so() -> None:
    model = parse_config({**SMOLLM2, "architectures": ["NewForCausalLM"]}, name="m")
    question = Question(model, gpu("L4"))
    found = answer(question)
    assert "Yes, if its layers are what they are taken for: " in printed(question, width=200)
    assert ", if its layers are what they are taken for: " in answer_sheet(question, found).lead
    assert "taken for" not in printed(Question(smollm2(), gpu("L4")), width=200)
    assert "taken for" not in answer_sheet(Question(smollm2(), gpu("L4")), found).lead


def test_a_start_without_room_for_one_request_is_no_plain_yes() -> None:
    """513 blocks' worth hold the 512 of a request; one is the null block, which 0.18 does not count."""
    block_bytes = 16 * 131_072
    question = Question(
        LLAMA_8B,
        gpu("H100"),
        max_model_len=8192,
        kv_cache_memory_bytes=512 * block_bytes,
        release=parse_release("0.18.0"),
    )
    assert "Yes: it starts, but its blocks hold not one whole request of 8,192 tokens, taking" in printed(question)
    assert "not one whole request of 8,192 tokens" in answer_sheet(question, answer(question)).lead
    more = replace(question, kv_cache_memory_bytes=513 * block_bytes)
    assert "Yes: 1 request of 8,192 tokens at once, taking" in printed(more)


def test_a_no_shows_the_reason_and_the_way_out_and_promises_no_log_line() -> None:
    question = Question(LLAMA_8B, gpu("L4"), max_model_len=131_072)
    screen = " ".join(printed(question).split())
    assert "No: one request of 131,072 tokens needs" in screen
    assert "Way out: try --max-model-len" in screen
    assert "KV cache size" not in screen


def test_a_cut_context_is_said() -> None:
    assert "Note: the model's own context" in printed(Question(LLAMA_8B, gpu("L4")))


def test_json_has_the_promised_keys_and_survives_a_round_trip() -> None:
    question = Question(LLAMA_8B, gpu("H100"), count=2, tensor_parallel_size=2)
    found = answer(question)
    document = json.loads(json.dumps(as_json(question, found)))
    assert set(document) >= {
        "schema_version",
        "fits",
        "reason",
        "way_out",
        "note",
        "model",
        "device",
        "limit_bytes",
        "terms",
        "weights_bytes",
        "kv_bytes_per_token",
        "kv_cache_bytes",
        "kv_cache_tokens",
        "num_blocks",
        "block_size",
        "max_concurrency",
        "requests_fit",
        "claimed_bytes",
        "settings",
        "log_line",
        # since schema_version 1 was first given out
        "certain",
        "release",
        "pipeline",
        "kv_cache_bytes_range",
        "kv_cache_tokens_range",
        "needed_kv_bytes",
        "longest_model_len",
        "log_lines",
    }
    assert document["fits"] is True
    assert document["model"]["num_parameters"] == 8_030_261_248
    assert document["device"]["count"] == 2
    assert sum(term["bytes"] for term in document["terms"]) + document["kv_cache_bytes"] == document["limit_bytes"]
    assert document["settings"]["tensor_parallel_size"] == 2
    assert document["log_line"] == log_line(question, found)


def test_json_of_a_no_has_no_log_line() -> None:
    question = Question(LLAMA_8B, gpu("T4"))
    document = as_json(question, answer(question))
    assert (document["fits"], document["log_line"]) == (False, None)
    assert document["reason"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_is_as_wide_as_the_screen_and_shares_it_by_bytes(width: int) -> None:
    question = Question(LLAMA_8B, gpu("H100"))
    found = answer(question)
    bar = next(line for line in printed(question, width).splitlines() if line.startswith("█"))
    cells = min(width, 100)
    assert len(bar) == cells
    assert bar.count("▞") == pytest.approx(found.kv_cache_bytes / question.device.memory_bytes * cells, abs=2)
    assert set(bar) == set("█▓▒░▞·")  # told apart without colour, the smallest part too


def test_the_bar_marks_the_limit_and_what_is_missing() -> None:
    screen = printed(Question(LLAMA_8B, gpu("L4"), max_model_len=131_072), 100)
    assert "limit 20.27 of 22.03 GiB" in screen
    assert "! missing 1" in screen  # 16 GiB for one request, less what is there


def test_memory_that_others_hold_is_in_the_bar() -> None:
    card = gpu("H100")
    question = Question(LLAMA_8B, replace(card, free_bytes=card.free_bytes - 20 * GIB))
    assert "# held by others 20.00" in printed(question, 100)


@pytest.mark.parametrize("name", ["T4", "L4", "H100", "GB10", "MI300X"])
def test_no_term_of_a_small_model_may_take_less_than_nothing(name: str) -> None:
    assert all(0 <= term.low_bytes <= term.bytes for term in answer(Question(smollm2(), gpu(name))).terms)


def test_terms_have_their_range_and_a_close_call_is_said() -> None:
    question = Question(LLAMA_8B, gpu("L4"), max_model_len=24_000)
    found = answer(question)
    screen = printed(question, 120)
    for term in found.terms:
        if term.low_bytes != term.high_bytes:
            assert f"{term.low_bytes / GIB:.2f}..{term.high_bytes / GIB:.2f}" in screen
    assert found.fits
    assert not found.certain  # 2.9 GiB are needed, 3.3 likely and 2.2 surely there
    assert "A close call" in screen


def test_the_stage_with_least_room_is_named() -> None:
    question = Question(LLAMA_8B, gpu("L4"), count=2, pipeline_parallel_size=2, max_model_len=8192)
    assert f"pipeline stage {answer(question).stage} of 2" in printed(question, 120)
    assert as_json(question, answer(question))["pipeline"] == {
        "size": 2,
        "stage": answer(question).stage,
        "devices": [],
    }
