"""vLLM's lines by release: worked by hand where the figures are, the words as its sources have them."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from sizing.gpu import GIB, Device, gpu
from sizing.log_lines import log_line, log_lines
from sizing.plan import answer
from sizing.question import Question
from sizing.release import parse_release
from tests.sizing.models import published, smollm2

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
KV_BYTES = 10 * GIB
TOKENS = 81_920  # 10 GiB / (32 layers x 8 heads x 128 x 2 (K and V) x 2 bytes = 131,072 bytes per token)


def lines(version: str, kv_cache_memory_bytes: int | None = None) -> list[str]:
    question = Question(
        LLAMA_8B,
        gpu("H100"),
        max_model_len=8192,
        release=parse_release(version),
        kv_cache_memory_bytes=kv_cache_memory_bytes,
    )
    return [line.text for line in log_lines(question, answer(question))]


def test_the_newest_release_puts_tokens_and_concurrency_in_one_line() -> None:
    found = lines("0.32.0", kv_cache_memory_bytes=KV_BYTES)
    assert found == [
        "Model loading took 14.99 GiB memory and ... seconds",  # 14.9888 as logged
        "... reserved 10.0 GiB memory for KV Cache as specified by kv_cache_memory_bytes config ...",
        f"GPU KV cache size: {TOKENS:,} tokens, Maximum concurrency for 8,192 tokens per request: 10.00x",
    ]


def test_before_0_28_they_are_two_lines() -> None:
    assert lines("0.27.1", kv_cache_memory_bytes=KV_BYTES)[-2:] == [
        f"GPU KV cache size: {TOKENS:,} tokens",
        "Maximum concurrency for 8,192 tokens per request: 10.00x",
    ]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.11.0", "Model loading took 14.9888 GiB and ... seconds"),
        ("0.11.1", "Model loading took 14.9888 GiB memory and ... seconds"),
        ("0.14.0", "Model loading took 14.99 GiB memory and ... seconds"),
    ],
)
def test_the_load_line_changed_twice(version: str, said: str) -> None:
    assert said in lines(version)


def test_the_graph_estimate_is_logged_where_it_is_taken_and_by_the_runner_that_says_so() -> None:
    def graphs(version: str) -> list[str]:
        return [line.split(":")[0] for line in lines(version) if "CUDA graph" in line]

    assert graphs("0.19.0") == []
    assert graphs("0.23.0") == ["Estimated CUDA graph memory", "CUDA graph pool memory"]
    assert graphs("0.28.0") == []  # the second runner's estimate was 0
    assert graphs("0.32.0") == ["CUDA graph pool memory"]


def test_available_memory_is_logged_since_0_9_1() -> None:
    assert not any("Available KV cache memory" in line for line in lines("0.9.0"))
    assert any("Available KV cache memory" in line for line in lines("0.9.1"))


def test_v0_logs_blocks_and_its_profile_run() -> None:
    question = Question(LLAMA_8B, gpu("H100"), max_model_len=8192, release=parse_release("0.8.5", engine="V0"))
    found = answer(question)
    logged = [line.text for line in log_lines(question, found)]
    assert f"# cuda blocks: {found.num_blocks}, # CPU blocks: ..." in logged
    assert logged[-1].startswith("Maximum concurrency for 8192 tokens per request: ")  # no comma
    assert any(f"reserved for KV Cache is {found.kv_cache_bytes / GIB:.2f}GiB." in line for line in logged)


def test_every_figure_lies_in_its_range_and_given_bytes_are_exact() -> None:
    question = Question(LLAMA_8B, gpu("H100"), max_model_len=8192)
    for line in log_lines(question, answer(question)):
        assert line.low < line.value < line.high
    given = Question(LLAMA_8B, gpu("H100"), max_model_len=8192, kv_cache_memory_bytes=KV_BYTES)
    tokens = log_lines(given, answer(given))[-1]
    assert (tokens.value, tokens.low, tokens.high, tokens.unit) == (TOKENS, TOKENS, TOKENS, "tokens")
    older = replace(given, max_model_len=8000, release=parse_release("0.27.0"))
    requests = log_lines(older, answer(older))[-1]
    assert requests.unit == "requests"
    assert requests.low == requests.value == requests.high  # as rounded as the line is


def test_a_processor_is_called_one_since_0_30() -> None:
    device = Device("cpu", "x86_64", 16 * GIB, 16 * GIB)
    for version, name in (("0.29.0", "GPU"), ("0.30.0", "CPU")):
        question = Question(
            smollm2(), device, max_model_len=2048, kv_cache_memory_bytes=2**28, release=parse_release(version)
        )
        assert log_line(question, answer(question)).startswith(f"{name} KV cache size: ")
    logged = [line.text for line in log_lines(question, answer(question))]
    assert logged[0] == "Explicitly set (0.25/16.0) GiB for KV cache on node ..."


def test_what_does_not_start_logs_nothing() -> None:
    question = Question(LLAMA_8B, gpu("T4"))
    assert log_lines(question, answer(question)) == ()


def test_the_words_are_those_of_the_vllm_installed_here() -> None:
    vllm = find_spec("vllm")  # read, not imported: that takes ten seconds
    if vllm is None or vllm.origin is None:
        pytest.skip("no vLLM here")
    source = (Path(vllm.origin).parent / "v1/core/kv_cache_utils.py").read_text()
    assert '"%s KV cache size: %s tokens, "' in source
    assert '"Maximum concurrency for %s tokens per request: %.2fx"' in source
