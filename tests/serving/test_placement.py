"""Which engine goes where, on machines made by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from serving.config import ModelSection
from serving.engine import argv
from serving.errors import PlacementError
from serving.placement import Folders, Placement, place
from serving.report import show_plan
from sizing.config_json import parse_config
from sizing.detect import Machine
from sizing.gpu import GIB, Device, gpu
from sizing.model import ModelShape

FOLDERS = Folders(Path("/run/berth"), Path("/var/log/berth"))
CORES = (0, 1, 2, 3)
CPU = Device(kind="cpu", name="CPU", memory_bytes=32 * GIB, free_bytes=24 * GIB)
LLAMA_8B: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


@pytest.fixture
def shape() -> ModelShape:
    return parse_config(LLAMA_8B, name="llama-8b")


@pytest.fixture
def small() -> ModelShape:
    """Four layers with a narrow feed-forward part and a short vocabulary: half a GiB."""
    narrow = {"num_hidden_layers": 4, "intermediate_size": 1024, "vocab_size": 1024}
    return parse_config({**LLAMA_8B, **narrow}, name="llama-8b")


def machine(*names: str) -> Machine:
    cards = tuple(replace(gpu(name), index=number) for number, name in enumerate(names))
    return Machine(gpus=cards, cpu=CPU, cpu_count=4)


def devices(placement: Placement) -> str:
    return placement.spec.env["CUDA_VISIBLE_DEVICES"]


def test_each_replica_gets_a_gpu_of_its_own(shape: ModelShape) -> None:
    section = ModelSection(model="meta/llama", replicas=2)
    first, second = place([(section, shape)], machine("L40S", "L40S"), CORES, FOLDERS)
    assert (devices(first), devices(second)) == ("0", "1")
    assert first.spec.url == "unix:/run/berth/0.sock"
    assert second.spec.log_path == Path("/var/log/berth/1-meta-llama-1.log")
    assert "--gpu-memory-utilization=0.92" in argv(first.spec)


def test_one_replica_too_many_is_refused(shape: ModelShape) -> None:
    section = ModelSection(model="meta/llama", replicas=3)
    with pytest.raises(PlacementError, match="meta/llama/2: all 2 GPUs are taken"):
        place([(section, shape)], machine("L40S", "L40S"), CORES, FOLDERS)


def test_a_model_too_big_for_one_card_spreads_over_two(shape: ModelShape) -> None:
    (placed,) = place([(ModelSection(model="meta/llama"), shape)], machine("T4", "T4"), CORES, FOLDERS)
    assert devices(placed) == "0,1"
    assert "--tensor-parallel-size=2" in argv(placed.spec)


def test_what_does_not_fit_says_the_numbers_and_a_way_out(shape: ModelShape) -> None:
    section = ModelSection(model="meta/llama", max_model_len=8192, kv_cache_memory_bytes=500_000_000)
    with pytest.raises(PlacementError, match=r"^meta/llama/0 does not fit: .*GiB.*; try --max-model-len 3"):
        place([(section, shape)], machine("L40S"), CORES, FOLDERS)


def test_a_way_out_is_one_that_this_machine_has(shape: ModelShape) -> None:
    with pytest.raises(PlacementError) as refused:
        place([(ModelSection(model="meta/llama"), shape)], machine("V100-16GB"), CORES, FOLDERS)
    assert "does not fit" in str(refused.value)
    assert "--count" not in str(refused.value)
    assert "--gpu " not in str(refused.value)


def test_the_emptiest_cards_are_taken_first(shape: ModelShape) -> None:
    two = machine("L40S", "L40S")
    partly_used = replace(two, gpus=(replace(two.gpus[0], free_bytes=2 * GIB), two.gpus[1]))
    (placed,) = place([(ModelSection(model="meta/llama"), shape)], partly_used, CORES, FOLDERS)
    assert devices(placed) == "1"


def test_every_rank_must_fit_on_the_fullest_card(shape: ModelShape) -> None:
    two = machine("T4", "T4")
    partly_used = replace(two, gpus=(two.gpus[0], replace(two.gpus[1], free_bytes=2 * GIB)))
    with pytest.raises(PlacementError, match="does not fit"):
        place([(ModelSection(model="meta/llama", tensor_parallel_size=2), shape)], partly_used, CORES, FOLDERS)


def test_names_that_look_alike_share_no_socket_and_no_log(small: ModelShape) -> None:
    sections = [(ModelSection(model="x/y", name=name), small) for name in ("a/b", "a-b")]
    first, second = place(sections, Machine(gpus=(), cpu=CPU, cpu_count=4), CORES, FOLDERS)
    assert first.spec.url != second.spec.url
    assert first.spec.log_path != second.spec.log_path


def test_a_socket_path_too_long_for_linux(small: ModelShape) -> None:
    folders = Folders(Path("/run") / ("x" * 120), Path("/var/log/berth"))
    with pytest.raises(PlacementError, match="too long for a Unix socket; set TMPDIR"):
        place([(ModelSection(model="x/y"), small)], Machine(gpus=(), cpu=CPU, cpu_count=4), CORES, folders)


def test_each_engine_publishes_its_kv_events_on_sockets_of_its_own(small: ModelShape) -> None:
    section = ModelSection(model="x/y", replicas=2, kv_events=True, listen="tcp")
    here = Machine(gpus=(), cpu=CPU, cpu_count=4)
    commands = [argv(placed.spec) for placed in place([(section, small)], here, CORES, FOLDERS)]
    for number, command in enumerate(commands):
        (flag,) = (flag for flag in command if flag.startswith("--kv-events-config="))
        assert json.loads(flag.partition("=")[2]) == {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"ipc:///run/berth/{number}.events",
            "replay_endpoint": f"ipc:///run/berth/{number}.replay",
        }
    (silent,) = place([(ModelSection(model="x/y"), small)], here, CORES, FOLDERS)
    assert not any("kv-events" in flag for flag in argv(silent.spec))
    with pytest.raises(PlacementError, match="too long for a Unix socket; set TMPDIR to a shorter path, or leave out"):
        place([(section, small)], here, CORES, Folders(Path("/run") / ("x" * 95), FOLDERS.logs))


def test_unlike_cards_are_never_mixed_in_one_engine(shape: ModelShape) -> None:
    section = ModelSection(model="meta/llama", tensor_parallel_size=2)
    with pytest.raises(PlacementError, match="tensor_parallel_size is 2, but there are 1 devices"):
        place([(section, shape)], machine("L40S", "H100"), CORES, FOLDERS)


def test_on_a_cpu_replicas_share_memory_and_cores(small: ModelShape) -> None:
    section = ModelSection(model="meta/llama", replicas=2)
    first, second = place([(section, small)], Machine(gpus=(), cpu=CPU, cpu_count=4), CORES, FOLDERS)
    assert first.spec.env["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert second.spec.env["VLLM_CPU_OMP_THREADS_BIND"] == "2,3"
    assert first.answer.claimed_bytes + second.answer.claimed_bytes <= CPU.free_bytes
    assert "--enforce-eager" in argv(first.spec)


def test_one_replica_on_a_cpu_leaves_the_cores_to_vllm(small: ModelShape) -> None:
    (placed,) = place([(ModelSection(model="a/b"), small)], Machine(gpus=(), cpu=CPU, cpu_count=4), CORES, FOLDERS)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in placed.spec.env


def test_settings_in_the_file_reach_the_command(small: ModelShape) -> None:
    section = ModelSection(
        model="a/b",
        name="public",
        max_model_len=4096,
        max_num_seqs=7,
        dtype="float16",
        listen="tcp",
        extra_args=("--enable-auto-tool-choice",),
        env={"HF_HUB_OFFLINE": "1"},
    )
    (placed,) = place([(section, small)], machine("L4"), CORES, FOLDERS)
    command = argv(placed.spec)
    assert command[1:6] == ["-P", "-m", "serving.vllm_main", "serve", "a/b"]
    for flag in ("--served-model-name=public", "--max-model-len=4096", "--max-num-seqs=7", "--dtype=float16"):
        assert flag in command
    assert command[-1] == "--enable-auto-tool-choice"
    assert placed.spec.url.startswith("http://127.0.0.1:")
    assert placed.spec.env["HF_HUB_OFFLINE"] == "1"


def mixture(**changes: object) -> ModelShape:
    """A mixture of 3 GB whose experts are 768 wide: 192 for each of four ranks, which is no multiple of 128."""
    config: dict[str, object] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    return parse_config({**config, **changes}, name="mixture")


def flags(placement: Placement) -> set[str]:
    return set(argv(placement.spec))


def test_stages_that_were_asked_for_reach_the_command_and_the_cards_their_order(shape: ModelShape) -> None:
    section = ModelSection(model="meta/llama", tensor_parallel_size=2, pipeline_parallel_size=2, max_model_len=4096)
    (placed,) = place([(section, shape)], machine(*["L4"] * 4), CORES, FOLDERS)
    assert {"--tensor-parallel-size=2", "--pipeline-parallel-size=2"} <= flags(placed)
    assert devices(placed) == "0,1,2,3"


def test_expert_parallelism_is_asked_for_or_found_where_experts_cannot_be_cut() -> None:
    asked = ModelSection(model="a/b", enable_expert_parallel=True, tensor_parallel_size=2)
    (placed,) = place([(asked, mixture())], machine("L4", "L4"), CORES, FOLDERS)
    assert "--enable-expert-parallel" in flags(placed)
    groups = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128},
            }
        },
    }
    cut = ModelSection(model="a/b", tensor_parallel_size=4)
    (placed,) = place([(cut, mixture(quantization_config=groups))], machine(*["L4"] * 4), CORES, FOLDERS)
    assert "--enable-expert-parallel" in flags(placed)


def test_fp8_weights_are_made_where_nothing_else_fits(shape: ModelShape) -> None:
    """15 GiB of an 8B in bfloat16 are too much for 14 GiB free of an L4; 8 in fp8 are not."""
    one = machine("L4")
    one = replace(one, gpus=(replace(one.gpus[0], free_bytes=14 * GIB),))
    (placed,) = place([(ModelSection(model="meta/llama"), shape)], one, CORES, FOLDERS)
    assert "--quantization=fp8" in flags(placed)
    assert any("fp8 weights change answers" in note for note in placed.notes)
    asked = ModelSection(model="meta/llama", quantization="fp8")
    (placed,) = place([(asked, shape)], machine("L4"), CORES, FOLDERS)
    assert "--quantization=fp8" in flags(placed)
    assert placed.answer.weights_bytes < 9 * GIB


def test_two_models_on_one_card_get_bytes_of_their_own(shape: ModelShape, small: ModelShape) -> None:
    models = [(ModelSection(model="a/big"), shape), (ModelSection(model="a/small"), small)]
    placements = place(models, machine("L40S"), CORES, FOLDERS)
    assert [devices(placed) for placed in placements] == ["0", "0"]
    for placed in placements:
        given = [flag.partition("=")[0] for flag in argv(placed.spec)]
        assert "--kv-cache-memory-bytes" in given
        assert "--gpu-memory-utilization" in given  # vLLM asks for that much to be free at start
        assert any("shares its card" in note for note in placed.notes)


def test_cards_that_nobody_is_on_are_named_with_what_would_use_them(shape: ModelShape) -> None:
    (placed,) = place([(ModelSection(model="meta/llama"), shape)], machine(*["L40S"] * 4), CORES, FOLDERS)
    assert placed.notes == ("3 more L40S are idle; replicas: 4 would use 3 of them",)
    assert any(each.what.startswith("2 x L40S, tensor_parallel_size 2") for each in placed.rejected)


def test_a_mig_instance_is_named_by_its_uuid(small: ModelShape) -> None:
    one = machine("A100-80GB")
    part = replace(one.gpus[0], name="NVIDIA A100-SXM4-80GB MIG 3g.40gb", memory_bytes=39 * GIB, free_bytes=39 * GIB)
    parts = tuple(replace(part, mig_uuid=f"MIG-{name}", link="none") for name in "ab")
    section = ModelSection(model="a/b", replicas=2)
    first, second = place([(section, small)], replace(one, gpus=parts), CORES, FOLDERS)
    assert (devices(first), devices(second)) == ("MIG-a", "MIG-b")
    two = ModelSection(model="a/b", tensor_parallel_size=2)
    with pytest.raises(PlacementError, match="one MIG instance only"):
        place([(two, small)], replace(one, gpus=parts), CORES, FOLDERS)


def test_what_needs_a_gpu_is_refused_on_a_cpu(small: ModelShape) -> None:
    here = Machine(gpus=(), cpu=CPU, cpu_count=4)
    for section in (ModelSection(model="a/b", quantization="fp8"), ModelSection(model="a/b", pipeline_parallel_size=2)):
        with pytest.raises(PlacementError, match=r"a/b/0: (quantization fp8 is done on a GPU|a processor is one)"):
            place([(section, small)], here, CORES, FOLDERS)


def test_the_plan_shows_a_few_of_the_other_ways_or_all(shape: ModelShape, capsys: pytest.CaptureFixture[str]) -> None:
    placements = place([(ModelSection(model="meta/llama"), shape)], machine(*["L40S"] * 4), CORES, FOLDERS)
    show_plan(placements, Console(width=200), commands=False, rejected="few")
    few = capsys.readouterr().out
    show_plan(placements, Console(width=200), commands=False, rejected="all")
    every = capsys.readouterr().out
    assert "more: --explain" in few
    assert "--explain" not in every
    assert "takes 2 cards where 1 will do" in few
    assert len(every.splitlines()) > len(few.splitlines())
