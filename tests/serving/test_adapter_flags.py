"""LoRA settings in a model's extra_args, as vLLM's parser takes them, and what they do to its placement."""

from dataclasses import replace
from pathlib import Path

import pytest

from serving.adapter_flags import adapters_of
from serving.config import ModelSection
from serving.engine import argv
from serving.errors import PlacementError
from serving.placement import Folders, Placement, place
from sizing.adapter_settings import Adapters
from sizing.detect import Machine
from sizing.errors import QuestionError
from sizing.gpu import GIB, Device, gpu
from tests.sizing.models import published, smollm2

CPU = Device("cpu", "x86_64", 16 * GIB, 12 * GIB)
LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        ((), None),
        (("--enable-lora",), Adapters(1, 16)),
        (("--max-loras=4",), None),  # vLLM looks at none of them without --enable-lora
        (("--enable-lora", "--max-loras", "4", "--max-lora-rank=64"), Adapters(4, 64)),
        (("--enable_lora", "--max_loras=2", "--max-loras=3"), Adapters(3, 16)),
        (("--enable-lora", "--fully-sharded-loras", "--no-fully-sharded-loras"), Adapters()),
        (("--enable-lora", "--no-enable-lora"), None),
        (
            ("--enable-lora", "--lora-target-modules", "q_proj", "o_proj", "--lora-dtype=float16", "--seed=1"),
            Adapters(lora_dtype="float16", lora_target_modules=("q_proj", "o_proj")),
        ),
        (("--tool-call-parser", "hermes", "--enable-lora", "--lora-modules", "sql=/adapters/sql"), Adapters()),
    ],
)
def test_reading(extra_args: tuple[str, ...], expected: Adapters | None) -> None:
    assert adapters_of(extra_args) == expected


@pytest.mark.parametrize(
    ("extra_args", "said"),
    [
        (("--enable-lora", "--max-loras"), "--max-loras takes one value; write such as --max-loras=4"),
        (("--enable-lora", "--max-loras=many"), "--max-loras is 'many', no whole number"),
        (("--enable-lora", "--max-lora-rank=10"), "max_lora_rank is 10; vLLM takes 1, 8, 16"),
        (
            ("--enable-lora", "--enable-tower-connector-lora"),
            "adapters of an encoder are not sized yet; leave --enable-",
        ),
    ],
)
def test_what_vllm_would_refuse(extra_args: tuple[str, ...], said: str) -> None:
    with pytest.raises(QuestionError, match=said):
        adapters_of(extra_args)


def placed(machine: Machine, folder: Path, *extra_args: str) -> Placement:
    model = LLAMA_8B if machine.gpus else smollm2()
    section = ModelSection(model="org/model", max_model_len=2048, extra_args=extra_args)
    (placement,) = place([(section, model)], machine, (0, 1), Folders(folder, folder))
    return placement


@pytest.mark.parametrize("gpus", [(), (replace(gpu("H100"), index=0),)])
def test_an_engine_is_placed_with_room_for_them(gpus: tuple[Device, ...], tmp_path: Path) -> None:
    machine = Machine(gpus, CPU, 2)
    flags = ("--enable-lora", "--max-loras=8", "--max-lora-rank=64")
    without, found = placed(machine, tmp_path), placed(machine, tmp_path, *flags)
    (term,) = [term for term in found.answer.terms if term.name == "LoRA adapters"]
    assert term.why == "room for 8 of rank 64 at once"
    assert {*flags} <= {*argv(found.spec)}
    if gpus:
        assert without.answer.kv_cache_bytes - found.answer.kv_cache_bytes > term.bytes > 2 * GIB


def test_a_card_is_not_sold_twice(tmp_path: Path) -> None:
    """16 GiB of weights fit an L4 with 2,048 tokens; 64 adapters of rank 64, 22 GiB, do not beside them."""
    machine = Machine((replace(gpu("L4"), index=0),), CPU, 2)
    assert placed(machine, tmp_path).answer.fits
    with pytest.raises(PlacementError, match="does not fit: "):
        placed(machine, tmp_path, "--enable-lora", "--max-loras=64", "--max-lora-rank=64")


def test_a_bad_setting_names_the_model(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"org/model.*max_lora_rank is 7"):
        placed(Machine((), CPU, 2), tmp_path, "--enable-lora", "--max-lora-rank=7")
