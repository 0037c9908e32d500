"""The report: every term of the sum, vLLM's own log line, and JSON with the keys that are promised."""

import io
import json

from rich.console import Console

from sizing.gpu import GIB, Device, gpu
from sizing.plan import Question, answer
from sizing.report import as_json, log_line, render
from tests.sizing.models import published, smollm2

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
CPU = Device("cpu", "x86_64", 16 * GIB, 16 * GIB)


def printed(question: Question) -> str:
    screen = io.StringIO()
    Console(file=screen, width=60).print(render(question, answer(question)), soft_wrap=True)
    return screen.getvalue()


def test_the_log_line_is_vllms_to_the_letter() -> None:
    question = Question(smollm2(), CPU, max_model_len=2048, kv_cache_memory_bytes=268_435_456)
    expected = "CPU KV cache size: 11,648 tokens, Maximum concurrency for 2,048 tokens per request: 5.69x"
    assert log_line(question, answer(question)) == expected
    assert expected in printed(question).splitlines()  # unbroken on a narrow screen


def test_a_yes_shows_every_term_and_the_requests() -> None:
    question = Question(LLAMA_8B, gpu("H100"))
    screen = printed(question)
    for term in answer(question).terms:
        assert term.name in screen
        assert f"{term.bytes / GIB:.2f}" in screen
    assert "GPU KV cache size: " in screen
    assert "Yes: 3 requests of 131,072 tokens at once" in screen


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
    assert set(document) == {
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
