"""Our own engines' logs become the calibration table, and nothing that goes wrong there stops an engine."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from serving.calibrating import Start, learn, question_of
from serving.calibration_table import current, table_path
from serving.config import ModelSection, load_stack
from serving.environment import Environment
from serving.placement import Folders, Placement, place
from sizing.detect import Machine
from sizing.errors import CalibrationError, QuestionError
from sizing.gpu import GIB, Device, gpu
from sizing.startup_log import StartupRecord
from tests.sizing.models import published, smollm2

CPU = Device("cpu", "x86_64", 16 * GIB, 12 * GIB)
DATA = Path(__file__).parents[1] / "sizing" / "data"
LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
GPU_LOG = """\
INFO [core.py:77] Initializing a V1 LLM engine (v0.26.0) with config: model='{model}', dtype=torch.bfloat16, \
max_seq_len=8192, tensor_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto
INFO [gpu_model_runner.py:4880] Model loading took 15.02 GiB memory and 3.100000 seconds
INFO [gpu_worker.py:440] Available KV cache memory: 54.95 GiB
INFO [gpu_worker.py:842] Actual usage is 15.02 GiB for weight, 1.63 GiB for peak activation, 0.25 GiB for non-torch \
memory, and 0.84 GiB for CUDAGraph memory.
INFO [core.py:250] init engine (profile, create kv cache, warmup model) took 30.1 seconds
"""


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(state_dir=tmp_path / "state")


def placed(tmp_path: Path, machine: Machine, log: str) -> Placement:
    section, shape = (ModelSection(model="org/model"), LLAMA_8B if machine.gpus else smollm2())
    (placement,) = place([(section, shape)], machine, (0, 1), Folders(tmp_path, tmp_path / "logs"))
    placement.spec.log_path.parent.mkdir(exist_ok=True)
    placement.spec.log_path.write_text(log)
    return placement


def test_what_an_engine_on_a_card_logged_is_kept_under_the_catalogues_name(
    tmp_path: Path, environment: Environment
) -> None:
    card = replace(gpu("H100"), name="NVIDIA H100 80GB HBM3", index=0)
    placement = placed(tmp_path, Machine((card,), CPU, 2), GPU_LOG.format(model="org/model"))
    learn([placement], environment)
    kept = {entry.term: entry for entry in current(environment).entries}
    assert {"weights", "activations", "non-torch"} <= set(kept)
    assert {(entry.gpu, entry.link, entry.release, entry.model) for entry in kept.values()} == {
        ("H100", "nvlink", "0.26.0", LLAMA_8B.name)
    }
    assert kept["weights"].measured_bytes == round(15.02 * GIB)
    assert kept["activations"].measured_bytes == round(1.63 * GIB)


def test_a_restart_counts_once_and_one_that_failed_not_at_all(tmp_path: Path, environment: Environment) -> None:
    card = replace(gpu("H100"), index=0)
    once = GPU_LOG.format(model="org/model")
    failed = once.replace("15.02", "99.99").partition("INFO [core.py:250]")[0]
    placement = placed(tmp_path, Machine((card,), CPU, 2), once + failed)
    learn([placement, placement], environment)
    learn([placement], environment)
    (weights,) = [entry for entry in current(environment).entries if entry.term == "weights"]
    assert weights.measured_bytes == round(15.02 * GIB)


def test_a_processors_engine_says_something_of_processors_only(tmp_path: Path, environment: Environment) -> None:
    learn([placed(tmp_path, Machine((), CPU, 2), (DATA / "vllm_cpu_0.32_startup.log").read_text())], environment)
    (entry,) = current(environment).entries
    assert (entry.term, entry.gpu, entry.link) == ("weights", "cpu", "none")
    assert abs(entry.measured_bytes - entry.predicted_bytes) < 0.005 * GIB


def test_what_cannot_be_read_or_written_is_a_warning(
    tmp_path: Path, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    placement = placed(tmp_path, Machine((replace(gpu("H100"), index=0),), CPU, 2), GPU_LOG.format(model="m"))
    table_path(environment).parent.mkdir(parents=True)
    table_path(environment).write_text("{")
    with caplog.at_level(logging.WARNING, logger="berth.serving"):
        learn([placement], environment)
    assert "not a calibration table" in caplog.text
    assert table_path(environment).read_text() == "{"  # and a file that is not understood is not overwritten
    placement.spec.log_path.unlink()
    with caplog.at_level(logging.WARNING, logger="berth.serving"):
        learn([placement], environment)
    assert "No such file" in caplog.text
    with pytest.raises(CalibrationError, match="move it away"):
        current(environment)


def test_a_log_without_figures_leaves_no_table(tmp_path: Path, environment: Environment) -> None:
    learn([placed(tmp_path, Machine((), CPU, 2), "INFO: Application startup complete.\n")], environment)
    assert not table_path(environment).exists()


def test_a_start_is_asked_about_as_it_was_made() -> None:
    record = StartupRecord(
        vllm="0.19.0", dtype="fp16", tp=2, gpu_total_gib=79.19, max_model_len=4096, max_num_seqs=64, args_stated=True
    )
    question = question_of(Start(record, LLAMA_8B, gpu("H100")))
    assert (question.model.dtype, question.count, question.tensor_parallel_size) == ("float16", 2, 2)
    assert (question.gpu_memory_utilization, question.max_num_seqs) == (0.9, 64)  # the default of 0.19
    assert question.device.memory_bytes == round(79.19 * GIB)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (StartupRecord(speculative=True), "drafter or adapters"),
        (StartupRecord(lora=True), "drafter or adapters"),
        (StartupRecord(pp=2), "pipeline stages"),
        (StartupRecord(quant="fp8"), "fp8 in the log, but not in the model"),
    ],
)
def test_a_start_that_held_something_else_is_not_compared(record: StartupRecord, said: str) -> None:
    with pytest.raises(QuestionError, match=said):
        question_of(Start(record, LLAMA_8B, gpu("H100")))


def test_it_can_be_switched_off(tmp_path: Path, environment: Environment) -> None:
    file = tmp_path / "berth.yaml"
    file.write_text("models: [demo]\ncalibrate: false\n")
    assert load_stack(str(file), environment, {}).calibrate is False
    assert load_stack(None, environment, {}).calibrate is True
