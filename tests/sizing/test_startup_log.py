"""Start-up logs of every vLLM: a real one, lines as each release words them, and what the installed one can print."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

from sizing.errors import CalibrationError
from sizing.startup_log import StartupRecord, parse_startup_log, read_records, records_from_json

REAL_CPU_LOG = Path(__file__).with_name("data") / "vllm_cpu_0.32_startup.log"


def only(text: str) -> StartupRecord:
    (record,) = parse_startup_log(text)
    return record


def engine_line(version: str, engine: str = "a V1", **changes: object) -> str:
    settings = {
        "model": "'org/model-7b'",
        "speculative_config": None,
        "dtype": "torch.bfloat16",
        "max_seq_len": 32768,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "quantization": None,
        "enforce_eager": False,
        "kv_cache_dtype": "auto",
        "device_config": "cuda",
        **changes,
    }
    text = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"INFO 09-01 10:00:00 [core.py:77] Initializing {engine} LLM engine (v{version}) with config: {text}"


def test_a_real_log_of_the_processors_engine() -> None:
    assert only(REAL_CPU_LOG.read_text()) == StartupRecord(
        model="/models/smollm2-135m-instruct",
        vllm="0.32.0",
        engine="V1",
        device="cpu",
        tp=1,
        pp=1,
        dp=1,
        dtype="bfloat16",
        kv_dtype="auto",
        kv_cache_memory_bytes=3_022_848_000,
        max_model_len=8192,
        max_num_seqs=16,
        max_num_batched_tokens=2048,
        enforce_eager=True,
        speculative=False,
        ckpt_gib=0.25,
        kv_gib=2.82,
        kv_tokens=131_200,
        conc=16.02,
        outcome="ok",
        args_stated=True,
    )


def test_0_6_says_all_in_one_line() -> None:
    record = only(
        "INFO 11-20 10:00:00 llm_engine.py:249] Initializing an LLM engine (v0.6.4.post1) with config: "
        "model='org/model-8b', speculative_config=None, dtype=torch.bfloat16, max_seq_len=20000, "
        "tensor_parallel_size=1, quantization=None, kv_cache_dtype=auto, device_config=cuda\n"
        "INFO 11-20 10:00:30 model_runner.py:1077] Loading model weights took 14.9888 GB\n"
        "INFO 11-20 10:00:40 worker.py:232] Memory profiling results: total_gpu_memory=23.58GiB "
        "initial_memory_usage=15.35GiB peak_torch_memory=17.06GiB memory_usage_post_profile=15.50GiB "
        "non_torch_memory=0.35GiB kv_cache_size=3.81GiB gpu_memory_utilization=0.90\n"
        "INFO 11-20 10:00:41 gpu_executor.py:113] # GPU blocks: 1952, # CPU blocks: 2048\n"
        "INFO 11-20 10:00:41 gpu_executor.py:117] Maximum concurrency for 20000 tokens per request: 1.56x\n"
    )
    assert (record.engine, record.release) == ("V0", (0, 6))
    assert (record.load_gib, record.nontorch_gib, record.kv_gib, record.gmu) == (14.9888, 0.35, 3.81, 0.9)
    assert record.act_gib == pytest.approx(17.06 - 14.9888, abs=1e-4)  # the peak holds the weights too
    assert (record.blocks, record.max_model_len, record.conc, record.gpu_total_gib) == (1952, 20_000, 1.56, 23.58)


V0_PROFILE = (
    "INFO 05-02 10:00:40 [worker.py:287] Memory profiling takes 4.11 seconds\n"
    "INFO 05-02 10:00:40 [worker.py:287] the current vLLM instance can use total_gpu_memory (79.33GiB) x "
    "gpu_memory_utilization (0.90) = 71.40GiB\n"
    "INFO 05-02 10:00:40 [worker.py:287] model weights take 4.03GiB; non_torch_memory takes 1.39GiB; PyTorch "
    "activation peak memory takes 0.32GiB; the rest of the memory reserved for KV Cache is 65.65GiB.\n"
)


def test_the_second_engines_predecessor() -> None:
    record = only(
        engine_line("0.8.5", "a V0", tensor_parallel_size=4)
        + "\n"
        + V0_PROFILE
        + "INFO 05-02 10:00:41 [executor_base.py:112] # cuda blocks: 307335, # CPU blocks: 18724\n"
        "INFO 05-02 10:00:41 [executor_base.py:117] Maximum concurrency for 3072 tokens per request: 1600.70x\n"
        "INFO 05-02 10:01:02 [model_runner.py:1592] Graph capturing finished in 20 secs, took 0.21 GiB\n"
        "INFO 05-02 10:01:02 [llm_engine.py:437] init engine (profile, create kv cache, warmup model) took 9.6 s\n"
    )
    assert (record.tp, record.load_gib, record.act_gib, record.nontorch_gib) == (4, 4.03, 0.32, 1.39)
    assert (record.gpu_total_gib, record.gmu, record.kv_gib) == (79.33, 0.9, 65.65)
    assert (record.blocks, record.cg_gib, record.cg_est_gib, record.outcome) == (307_335, 0.21, None, "ok")
    assert record.device == "cuda"


def test_the_four_decimals_of_the_loading_line_are_the_better_reading() -> None:
    record = only("INFO [model_runner.py:1140] Model loading took 4.0312 GiB and 3.10 seconds\n" + V0_PROFILE)
    assert record.load_gib == 4.0312


def test_of_several_ranks_the_worst_counts() -> None:
    ranks = "\n".join(
        f"\x1b[1;36m(VllmWorker TP{rank} pid=9{rank})\x1b[0;0m INFO 07-01 10:00:00 [gpu_worker.py:232] {said}"
        for rank, load, kv in ((0, 35.1, 27.31), (1, 35.4, 26.98))
        for said in (
            f"Model loading took {load:.4f} GiB and 12.000000 seconds",
            f"Available KV cache memory: {kv} GiB",
            "Graph capturing finished in 30 secs, took 0.62 GiB",
        )
    )
    cores = (
        "(EngineCore_0 pid=80) INFO [kv_cache_utils.py:716] GPU KV cache size: 176,832 tokens\n"
        "(EngineCore_0 pid=80) INFO [kv_cache_utils.py:720] Maximum concurrency for 32,768 tokens per request: 5.40x\n"
    )
    record = only(f"{engine_line('0.9.2', tensor_parallel_size=2)}\n{ranks}\n{cores}")
    assert (record.load_gib, record.kv_gib, record.cg_gib) == (35.4, 26.98, 0.62)
    assert (record.kv_tokens, record.conc, record.max_model_len, record.tp) == (176_832, 5.4, 32_768, 2)
    assert (record.outcome, record.gpu_memory_utilization) == (None, None)  # not said, and no arguments to go by


def test_what_is_not_among_the_arguments_was_left_to_its_default() -> None:
    text = "INFO [utils.py:233] non-default args: {'model': 'org/model-7b', 'max_num_seqs': 64}\n"
    kv = "INFO Available KV cache memory: 50.00 GiB\n"
    assert only(text + engine_line("0.19.1") + "\n" + kv).gpu_memory_utilization == 0.9
    assert only(text + engine_line("0.20.0") + "\n" + kv).gpu_memory_utilization == 0.92
    stated = text.replace("64}", "64, 'gpu_memory_utilization': 0.85}")
    assert only(stated + engine_line("0.20.0") + "\n" + kv).gpu_memory_utilization == 0.85


def test_arguments_as_a_namespace() -> None:
    record = only(
        "INFO [api_server.py:1043] vLLM API server version 0.8.5\n"
        "INFO [api_server.py:1044] args: Namespace(model_tag='org/model-7b', model='org/model-7b', dtype='auto', "
        "kv_cache_dtype='auto', max_model_len=8192, gpu_memory_utilization=0.95, max_num_seqs=None, "
        "max_num_batched_tokens=4096, enable_lora=True, block_size=None, tensor_parallel_size=2)\n"
        "INFO [gpu_model_runner.py:1347] Model loading took 7.5123 GiB and 3.100000 seconds\n"
    )
    assert (record.vllm, record.model, record.max_model_len, record.gmu) == ("0.8.5", "org/model-7b", 8192, 0.95)
    assert (record.max_num_seqs, record.max_num_batched_tokens, record.block_size) == (None, 4096, None)
    assert (record.lora, record.tp) == (True, 2)


def test_0_20_takes_an_estimate_for_its_graphs() -> None:
    record = only(
        engine_line("0.20.0") + "\n"
        "INFO [gpu_model_runner.py:4880] Model loading took 15.27 GiB memory and 3.100000 seconds\n"
        "INFO [gpu_model_runner.py:6043] Estimated CUDA graph memory: 0.78 GiB total\n"
        "INFO [gpu_worker.py:440] Available KV cache memory: 55.01 GiB\n"
        "INFO [gpu_worker.py:455] CUDA graph memory profiling is enabled (default since v0.21.0). The current "
        "--gpu-memory-utilization=0.9200 is equivalent to --gpu-memory-utilization=0.9101 without CUDA graph memory "
        "profiling. To maintain the same effective KV cache size as before, increase --gpu-memory-utilization to "
        "0.9299. To disable, set VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0.\n"
        "INFO [gpu_worker.py:596] CUDA graph pool memory: 0.65 GiB (actual), 0.78 GiB (estimated), difference: "
        "0.13 GiB (20.0%).\n"
    )
    assert (record.cg_est_gib, record.cg_gib, record.cg_applied, record.gmu) == (0.78, 0.65, True, 0.92)


def test_0_27_sums_weights_and_non_torch_and_its_suggestions_are_not_taken_for_measurements() -> None:
    record = only(
        engine_line("0.27.1") + "\n"
        "INFO [gpu_worker.py:793] Free memory on device (78.66/79.19 GiB) on startup. Desired GPU memory utilization "
        "is (0.92, 72.85 GiB). Actual usage is 15.9 GiB for consumed memory (weights + non-torch), 2.1 GiB for peak "
        "activation, and 0.65 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with "
        "`--kv-cache-memory=58131152896` (54.14 GiB) to fit into requested memory, or `--kv-cache-memory=64369340416` "
        "(59.95 GiB) to fully utilize gpu memory. Current kv cache memory in use is 54.85 GiB.\n"
    )
    assert (record.consumed_gib, record.act_gib, record.cg_gib) == (15.9, 2.1, 0.65)
    assert (record.gpu_total_gib, record.gmu) == (79.19, 0.92)
    assert (record.kv_gib, record.load_gib, record.kv_cache_memory_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (
            "ValueError: To serve at least one request with the models's max seq len (1048576), (24.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (9.97 GiB). Based on the available memory, the "
            "estimated maximum model length is 435488. Try increasing `gpu_memory_utilization`",
            "refused: 24.00 GiB of KV cache needed, 9.97 GiB available",
        ),
        (
            "ValueError: The model's max seq len (29000) is larger than the maximum number of tokens that can be "
            "stored in KV cache (23648). Try increasing `gpu_memory_utilization`",
            "refused: max seq len (29000) > KV tokens (23648)",
        ),
        ("ValueError: No available memory for the cache blocks. Try", "refused: no memory left for the KV cache"),
        (
            "ValueError: Free memory on device cuda:0 (20.10/79.19 GiB) on startup is less than desired GPU memory "
            "utilization (0.92, 72.85 GiB). Decrease GPU memory utilization",
            "refused: only 20.10 GiB free on the card",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "23.53 GiB of which 1.10 GiB is free.",
            "OOM: 2.00 GiB more could not be had",
        ),
    ],
)
def test_how_a_start_failed(said: str, outcome: str) -> None:
    assert only(f"{engine_line('0.20.0')}\n(EngineCore pid=7) ERROR [core.py:900] {said}\n").outcome == outcome


def test_the_refusals_own_figures() -> None:
    record = only(
        "ValueError: ... (24.00 GiB KV cache is needed, which is larger than the available KV cache memory (3.18 GiB). "
        "Based on the available memory, the estimated maximum model length is 34736."
    )
    assert (record.kv_needed_gib, record.kv_gib, record.est_max_len) == (24.0, 3.18, 34_736)


def test_out_of_memory_while_serving_is_not_how_the_start_ended() -> None:
    log = REAL_CPU_LOG.read_text() + "ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    assert only(log).outcome == "ok"


def test_restarts_in_one_log_are_told_apart_and_data_parallel_ranks_are_not() -> None:
    first, second = parse_startup_log(
        REAL_CPU_LOG.read_text() + REAL_CPU_LOG.read_text().replace("131,200 tokens", "65,536 tokens")
    )
    assert (first.kv_tokens, second.kv_tokens) == (131_200, 65_536)
    ranks = "\n".join(
        f"(EngineCore_DP{rank} pid=8{rank}) {line}"
        for line in (engine_line("0.11.0", data_parallel_size=2), "GPU KV cache size: {} tokens")
        for rank, line in ((0, line.replace("{}", "90,000")), (1, line.replace("{}", "80,000")))
    )
    record = only(ranks)
    assert (record.dp, record.kv_tokens) == (2, 80_000)


def test_through_docker_kubernetes_and_colours() -> None:
    said = "INFO 09-01 10:00:00 [gpu_worker.py:298] Available KV cache memory: 55.01 GiB"
    docker = json.dumps({"log": f"{said}\n", "stream": "stderr", "time": "2025-09-01T10:00:00Z"}).replace(": ", ":", 1)
    assert only(docker).kv_gib == 55.01
    assert only(f"2025-09-01T10:00:00.1Z stderr F {said}\r").kv_gib == 55.01
    assert only(f"vllm-1  | \x1b[36m{said[:40]}\x1b[0m{said[40:]}").kv_gib == 55.01
    assert only(f"Capturing: 10%\rCapturing: 100%\r{said}").kv_gib == 55.01


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (
            "WARNING Using default MoE config. Config file not found at E=128,N=192,device_name=NVIDIA_H100_80GB_HBM3"
            ".json",
            "NVIDIA H100 80GB HBM3",
        ),
        ("N=1,K=2,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128,128].json", "NVIDIA L40S"),
        ("GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)", "NVIDIA A100-SXM4-80GB"),
        ("|   0  NVIDIA GeForce RTX 4090        On  |   00000000:01:00.0 Off |", "NVIDIA GeForce RTX 4090"),
        ("|   0  Tesla T4                       Off |   00000000:00:1E.0 Off |", "Tesla T4"),
    ],
)
def test_where_a_log_happens_to_name_the_card(line: str, name: str) -> None:
    assert only(f"{line}\nAvailable KV cache memory: 1.00 GiB").gpu == name


def test_nothing_of_vllms_is_no_record() -> None:
    assert parse_startup_log("INFO: Started server process [1]\nGET /health 200\n") == ()
    assert parse_startup_log("") == ()


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_rows_in_json_and_in_lines(tmp_path: Path) -> None:
    row = {"id": "a", "model": "org/m", "vllm": "0.19.0", "kv_gib": 55, "kv_tokens": 12, "lora": True, "act_gib": None}
    expected = StartupRecord(model="org/m", vllm="0.19.0", kv_gib=55, kv_tokens=12, lora=True)
    assert records_from_json(write(tmp_path / "rows.json", json.dumps([row, row]))) == (expected, expected)
    lines = write(tmp_path / "rows.jsonl", json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    assert records_from_json(lines) == read_records(lines) == (expected, expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"kv_gib": "55"}]', "row 1: kv_gib is '55', not a float"),
        ('[{"kv_tokens": 1.5}]', "kv_tokens is 1.5, not a int"),
        ('{"kv_tokens": true}', "kv_tokens is True"),
        ('[{"kv_gib": 1}, 7]', "row 2: not an object"),
        ('[{"kv_gib": 1}', "not JSON"),
        ("nothing here\n", 'no vLLM start-up lines; looked for "Model loading took"'),
        ("", "no vLLM start-up lines"),
    ],
)
def test_a_file_that_says_nothing_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = write(tmp_path / "file", content)
    with pytest.raises(CalibrationError) as caught:
        read_records(file)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_records(tmp_path / "absent.log")


def vllm_says(module: str, anchor: str) -> str:
    """The line with that text as the installed vLLM would print it, every figure in it 7."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [node.value]
        else:
            continue
        if anchor in "".join(parts):
            return re.sub(r"%s|%d|%\.\df", "7", "".join(parts)).replace("%%", "%")
    raise AssertionError(f"{module} no longer says {anchor!r}")


@pytest.mark.parametrize(
    ("module", "anchor", "fields"),
    [
        ("v1/worker/gpu_model_runner.py", "Model loading took", {"load_gib": 7}),
        ("v1/worker/gpu_model_runner.py", "Estimated CUDA graph memory", {"cg_est_gib": 7}),
        ("v1/worker/gpu_model_runner.py", "Graph capturing finished", {"cg_gib": 7}),
        ("v1/worker/gpu/model_runner.py", "Model loading took", {"load_gib": 7}),
        ("v1/worker/gpu/model_runner.py", "Graph capturing finished", {"cg_gib": 7}),
        ("v1/worker/gpu_worker.py", "Available KV cache memory", {"kv_gib": 7}),
        ("v1/worker/gpu_worker.py", "CUDA graph pool memory", {"cg_gib": 7, "cg_est_gib": 7}),
        ("v1/worker/gpu_worker.py", "CUDA graph memory profiling is enabled", {"cg_applied": True, "gmu": 7}),
        ("v1/worker/gpu_worker.py", "CUDA graph memory profiling is disabled", {"cg_applied": False}),
        (
            "v1/worker/gpu_worker.py",
            "Actual usage is",
            {"consumed_gib": 7, "act_gib": 7, "cg_gib": 7, "gpu_total_gib": 7, "gmu": 7},
        ),
        ("v1/worker/gpu_worker.py", "as specified by kv_cache_memory_bytes", {"kv_gib": 7}),
        ("v1/worker/cpu_worker.py", "Explicitly set", {"kv_gib": 7}),
        ("v1/worker/cpu_worker.py", "Auto set", {"kv_gib": 7}),
        ("utils/mem_utils.py", "torch peak memory increase", {"consumed_gib": 7}),
        ("v1/core/kv_cache_utils.py", "KV cache size: ", {"kv_tokens": 7, "conc": 7, "max_model_len": 7}),
        ("v1/core/kv_cache_utils.py", "KV cache is needed", {"kv_needed_gib": 7, "kv_gib": 7}),
        ("v1/core/kv_cache_utils.py", "estimated maximum model length is", {"est_max_len": 7}),
        ("v1/core/kv_cache_utils.py", "No available memory for the cache", {"outcome": "refused: no memory left for"}),
        ("v1/core/kv_cache_utils.py", "Cannot auto-fit", {"outcome": "refused: not even one token"}),
        ("v1/worker/utils.py", "is less than desired", {"outcome": "refused: only 7 GiB", "gpu_total_gib": 7}),
        ("config/scheduler.py", "Chunked prefill is enabled with", {"max_num_batched_tokens": 7}),
        ("platforms/interface.py", "to ensure that attention page size", {"block_size": 7}),
        ("model_executor/model_loader/weight_utils.py", "Checkpoint size", {"ckpt_gib": 7}),
    ],
)
def test_every_line_read_is_one_that_the_installed_vllm_prints(
    module: str, anchor: str, fields: dict[str, float | str]
) -> None:
    record = only(f"{vllm_says(module, anchor)}\nModel loading took 7 GiB memory and 1.0 seconds")
    for name, expected in fields.items():
        found = getattr(record, name)
        assert str(found).startswith(str(expected)) if isinstance(expected, str) else found == expected, name
