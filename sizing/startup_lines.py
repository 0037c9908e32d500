"""What vLLM's start-up lines look like, release by release: patterns, and the fields each of them gives."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_NUMBER = r"-?[\d,]*\.?\d+"


def cleaned(lines: Iterable[str]) -> Iterator[str]:
    """Lines without colours, without what a progress bar overwrote, and out of a container runtime's JSON."""
    for line in lines:
        text = _unwrapped(line) if line.startswith('{"log":') else line
        if "\x1b" in text:
            text = _COLOUR.sub("", text)
        yield from text.rstrip("\r\n").split("\r")


def _unwrapped(line: str) -> str:
    """Docker's json-file driver: {"log": "...\\n", "stream": "stderr", "time": "..."}."""
    try:
        return str(json.loads(line)["log"])
    except (ValueError, KeyError, TypeError):
        return line


def _line(pattern: str) -> re.Pattern[str]:
    """A pattern in which <name>GIB stands for a size: 1.23 GiB, 1.23GiB or, as vLLM before 0.8 writes it, 1.23 GB."""
    return re.compile(re.sub(r"<(\w+)>GIB", lambda name: rf"(?P<{name[1]}>{_NUMBER}) ?Gi?B", pattern))


FINDINGS: tuple[re.Pattern[str], ...] = tuple(
    map(
        _line,
        (
            # The cache: v1/core/kv_cache_utils.py, v1/worker/cpu_worker.py, and executor/executor_base.py of V0
            r"KV cache size: (?P<kv_tokens>[\d,]+) tokens",
            r"Maximum concurrency for (?P<max_model_len>[\d,]+) tokens per request: (?P<conc>[\d,.]+)x",
            r"# (?P<device>\w+) blocks: (?P<blocks>[\d,]+)",
            r"Overriding num_gpu_blocks=(?P<blocks>\d+) with",
            r"Available KV cache memory: <kv_gib>GIB",
            r"reserved <kv_gib>GIB memory for KV Cache as specified by kv_cache_memory_bytes",
            rf"(?:Explicitly|Auto) set \((?P<kv_gib>{_NUMBER})/",
            # Weights: v1/worker/gpu_model_runner.py; "Loading model weights took" before 0.8
            r"(?:Model loading|Loading model weights) took <load_gib>GIB",
            r"Checkpoint size: <ckpt_gib>GIB",
            # 0.6: worker/worker.py
            r"total_gpu_memory=<gpu_total_gib>GIB .*peak_torch_memory=<peak_torch_gib>GIB .*"
            r"non_torch_memory=<nontorch_gib>GIB kv_cache_size=<kv_gib>GIB gpu_memory_utilization=(?P<gmu>[\d.]+)",
            # V0 of 0.7 and later: worker/worker.py
            r"total_gpu_memory \(<gpu_total_gib>GIB\) x gpu_memory_utilization \((?P<gmu>[\d.]+)\)",
            r"model weights take <load_gib>GIB",
            r"non_torch_memory takes <nontorch_gib>GIB",
            r"PyTorch activation peak memory takes <act_gib>GIB",
            r"reserved for KV Cache is <kv_gib>GIB",
            # V1: utils/mem_utils.py, debug
            r"torch peak memory increase: <act_gib>GIB; non-torch forward increase memory: <nontorch_gib>GIB",
            r"total consumed \(from mem_get_info\): <consumed_gib>GIB",
            # V1: v1/worker/gpu_worker.py, debug before 0.26; the second form since 0.27
            r"GiB for weight, <act_gib>GIB for peak activation, "
            r"<nontorch_gib>GIB for non-torch memory, and <cg_gib>GIB for CUDAGraph",
            r"<consumed_gib>GIB for consumed memory \(weights \+ non-torch\), "
            r"<act_gib>GIB for peak activation, and <cg_gib>GIB for CUDAGraph",
            # CUDA graphs: v1/worker/gpu_model_runner.py, gpu_worker.py
            r"CUDA graph pool memory: <cg_gib>GIB \(actual\), <cg_est_gib>GIB \(estimated\)",
            r"Estimated CUDA graph memory: <cg_est_gib>GIB total",
            r"Graph capturing finished in [\d.]+ secs?, took <cg_gib>GIB",
            # The card: its size, and its name where a tuned kernel was looked for or nvidia-smi was asked
            rf"Free memory on device[^(]*\({_NUMBER}/<gpu_total_gib>GIB\)",
            r"total capacity of <gpu_total_gib>GIB",
            r"device_name=(?P<gpu>[A-Za-z][\w. -]*?)(?:,|\.json)",
            r"(?:\bGPU \d+: |\|\s+\d+\s+)(?P<gpu>(?:NVIDIA|Tesla|AMD) [A-Za-z][\w -]*?)"
            r"(?=\s*[(|]|\s+(?:On|Off)\b|\s*$)",
            # What was asked, as it was settled
            r"Chunked prefill is enabled with max_num_batched_tokens=(?P<max_num_batched_tokens>\d+)",
            r"Setting attention block size to (?P<block_size>\d+) tokens",
            r"[dD]esired GPU memory utilization (?:is )?\((?P<gmu>[\d.]+),",
            r"The current --gpu-memory-utilization=(?P<gmu>[\d.]+) is",
            r"CUDA graph memory profiling is (?P<cg_applied>enabled|disabled)",
            # A refusal, of v1/core/kv_cache_utils.py
            r"\(<kv_needed_gib>GIB KV cache is needed, "
            r"which is larger than the available KV cache memory \(<kv_gib>GIB\)",
            r"estimated maximum model length is (?P<est_max_len>\d+)",
        ),
    )
)
"""Group names are StartupRecord's; of two patterns that give the same field the earlier is the better reading."""

ENGINE = re.compile(
    r"Initializing (?:a (?P<engine>V[01])|an) LLM engine \(v(?P<vllm>[^)\s]+)\) with config: (?P<config>.*)"
)
_SETTINGS = {
    "model": r"\bmodel='(.+?)'",
    "dtype": r"\bdtype=(?:torch\.)?(\w+)",
    "quant": r"\bquantization=(\w+)",
    "kv_dtype": r"\bkv_cache_dtype=(\w+)",
    "device": r"\bdevice_config=(\w+)",
    "max_model_len": r"\bmax_seq_len=(\d+)",
    "tp": r"\btensor_parallel_size=(\d+)",
    "pp": r"\bpipeline_parallel_size=(\d+)",
    "dp": r"\bdata_parallel_size=(\d+)",
    "enforce_eager": r"\benforce_eager=(True|False)",
    "speculative": r"\bspeculative_config=(\w+)",
}
SERVER = re.compile(
    r"vLLM API server version (?P<server>\S+)|[▀▄█]\s+version (?P<banner>\S+)"
    r"|non-default args: (?P<args>\{.*)|\bargs: (?P<namespace>Namespace\(.*)"
)
_ARGUMENTS = {
    "max_num_batched_tokens": ("max_num_batched_tokens", r"(\d+)"),
    "max_num_seqs": ("max_num_seqs", r"(\d+)"),
    "max_model_len": ("max_model_len", r"(\d+)"),
    "gmu": ("gpu_memory_utilization", r"([01]?\.\d+|1)"),
    "kv_cache_memory_bytes": ("kv_cache_memory_bytes", r"(\d+)"),
    "block_size": ("block_size", r"(\d+)"),
    "tp": ("tensor_parallel_size", r"(\d+)"),
    "pp": ("pipeline_parallel_size", r"(\d+)"),
    "dp": ("data_parallel_size", r"(\d+)"),
    "kv_dtype": ("kv_cache_dtype", r"(\w+)"),
    "quant": ("quantization", r"(\w+)"),
    "dtype": ("dtype", r"(\w+)"),
    "enforce_eager": ("enforce_eager", r"(True|False)"),
    "ep": ("enable_expert_parallel", r"(True|False)"),
    "lora": ("enable_lora", r"(True|False)"),
    "speculative": ("speculative_config", r"(\S)"),
    "model": ("model", r"([^'\",)]+)"),
}


def engine_settings(config: str) -> dict[str, str]:
    """What follows "with config:", by StartupRecord's names."""
    return _searched({name: re.compile(key) for name, key in _SETTINGS.items()}, config)


def arguments(text: str) -> dict[str, str]:
    """Of the line of arguments, a dictionary (`'max_num_seqs': 16`) or a Namespace (`max_num_seqs=16`)."""
    keys = {
        name: re.compile(rf"(?<!\w){flag}'?\s*[:=]\s*'?{value}(?![\w.])") for name, (flag, value) in _ARGUMENTS.items()
    }
    return _searched(keys, text)


def _searched(keys: Mapping[str, re.Pattern[str]], text: str) -> dict[str, str]:
    found = {name: match[1] for name, key in keys.items() if (match := key.search(text))}
    if "speculative" in found:
        found["speculative"] = str(found["speculative"] not in ("None", "N"))
    return {name: value for name, value in found.items() if value != "None"}


_VERDICTS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"init engine \(profile|Application startup complete"), lambda _: "ok"),
    (
        _line(r"\(<needed>GIB KV cache is needed, which is larger than the available KV cache memory \(<left>GIB\)"),
        lambda found: f"refused: {found['needed']} GiB of KV cache needed, {found['left']} GiB available",
    ),
    (
        re.compile(r"max seq len \((\d+)\) is larger than the maximum number of tokens .*?\((\d+)\)"),
        lambda found: f"refused: max seq len ({found[1]}) > KV tokens ({found[2]})",
    ),
    (re.compile("No available memory for the cache blocks"), lambda _: "refused: no memory left for the KV cache"),
    (re.compile("Cannot auto-fit max_model_len"), lambda _: "refused: not even one token of KV cache fits"),
    (
        re.compile(rf"Free memory on device[^(]*\(({_NUMBER})/.*is less than desired GPU memory utilization"),
        lambda found: f"refused: only {found[1]} GiB free on the card",
    ),
    (
        re.compile(r"out of memory\. Tried to allocate ([\d.]+ [KMG]iB)"),
        lambda found: f"OOM: {found[1]} more could not be had",
    ),
    (re.compile("OutOfMemoryError"), lambda _: "OOM"),
)


def verdict(line: str) -> str | None:
    """How a start ended, where the line says so: "ok", "refused: ..." or "OOM: ..."."""
    return next((say(found) for key, say in _VERDICTS if (found := key.search(line))), None)
