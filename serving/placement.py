"""Which engine goes where: asks sizing about each replica in turn, on what the ones before it have left."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serving.config import ModelSection
from serving.engine import EngineSpec
from serving.errors import PlacementError
from sizing.detect import Machine
from sizing.errors import SizingError
from sizing.gpu import Device
from sizing.model import ModelShape
from sizing.plan import Answer, Question, answer


@dataclass(frozen=True, slots=True)
class Placement:
    """One engine, the question sizing was asked about it, and the answer it is started by."""

    spec: EngineSpec
    question: Question
    answer: Answer
    where: str


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the sockets and logs of this run go."""

    sockets: Path
    logs: Path


def place(
    models: Sequence[tuple[ModelSection, ModelShape]], machine: Machine, cores: Sequence[int], folders: Folders
) -> tuple[Placement, ...]:
    """Place every replica of every model, or raise PlacementError with the numbers and the nearest way out.

    GPUs are given whole, in order; on a machine without one the replicas share memory and cores evenly.
    """
    wanted = [(section, shape, number) for section, shape in models for number in range(section.replicas)]
    put = _on_gpus(machine) if machine.gpus else _on_cpu(machine.cpu, cores, len(wanted))
    placements = []
    for section, shape, number in wanted:
        name = f"{section.name}/{number}"
        try:
            placements.append(put(name, section, shape, folders))
        except SizingError as error:
            raise PlacementError(f"{name}: {error}") from error
    return tuple(placements)


Put = Callable[[str, ModelSection, ModelShape, Folders], Placement]


def _on_gpus(machine: Machine) -> Put:
    free = list(machine.gpus)

    def put(name: str, section: ModelSection, shape: ModelShape, folders: Folders) -> Placement:
        if not free:
            raise PlacementError(
                f"{name}: all {len(machine.gpus)} GPUs are taken by the replicas before it; ask for fewer replicas"
            )
        like = [gpu for gpu in free if gpu.name == free[0].name]
        question = _question(section, shape, like[0], len(like))
        found = _fitting(name, question)
        taken = like[: found.settings.tensor_parallel_size]
        for gpu in taken:
            free.remove(gpu)
        indices = ",".join(str(gpu.index) for gpu in taken)
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": indices}
        return Placement(
            _spec(name, section, question, found, folders, env), question, found, f"{taken[0].name} {indices}"
        )

    return put


def _on_cpu(cpu: Device, cores: Sequence[int], replicas: int) -> Put:
    left = {"bytes": cpu.free_bytes, "replicas": replicas}

    def put(name: str, section: ModelSection, shape: ModelShape, folders: Folders) -> Placement:
        share = replace(cpu, free_bytes=left["bytes"] // left["replicas"])
        number = replicas - left["replicas"]
        question = _question(section, shape, share, 1)
        found = _fitting(name, question)
        left["bytes"] -= found.claimed_bytes
        left["replicas"] -= 1
        env = _core_binding(cores, number, replicas)
        where = f"CPU cores {env['VLLM_CPU_OMP_THREADS_BIND']}" if env else "CPU"
        return Placement(_spec(name, section, question, found, folders, env), question, found, where)

    return put


def _core_binding(cores: Sequence[int], number: int, replicas: int) -> dict[str, str]:
    """Each engine its own cores: left alone, every vLLM on the machine binds its threads to the same first ones."""
    each = len(cores) // replicas
    if replicas == 1 or each == 0:
        return {}
    mine = cores[number * each : (number + 1) * each]
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in mine)}


def _question(section: ModelSection, shape: ModelShape, device: Device, count: int) -> Question:
    return Question(
        model=shape,
        device=device,
        count=count,
        tensor_parallel_size=section.tensor_parallel_size,
        max_model_len=section.max_model_len,
        max_num_seqs=section.max_num_seqs,
        max_num_batched_tokens=section.max_num_batched_tokens,
        gpu_memory_utilization=section.gpu_memory_utilization,
        kv_cache_memory_bytes=section.kv_cache_memory_bytes,
        kv_cache_dtype=section.kv_cache_dtype,
        enforce_eager=_eager(section, device),
    )


def _eager(section: ModelSection, device: Device) -> bool:
    """On a CPU compiling costs minutes at each start and gains little; on a GPU graphs are worth their wait."""
    return device.kind == "cpu" if section.enforce_eager is None else section.enforce_eager


def _fitting(name: str, question: Question) -> Answer:
    found = answer(question)
    if not found.fits:
        raise PlacementError(f"{name} does not fit: {found.reason}" + (f"; {found.way_out}" if found.way_out else ""))
    return found


def _spec(
    name: str, section: ModelSection, question: Question, found: Answer, folders: Folders, env: dict[str, str]
) -> EngineSpec:
    plain = name.replace("/", "-")
    local = {"HF_HUB_OFFLINE": "1"} if Path(section.model).is_dir() else {}
    return EngineSpec(
        name=name,
        model=section.model,
        served_model_name=section.name,
        settings=found.settings,
        url=_url(section, folders, plain),
        log_path=folders.logs / f"{plain}.log",
        dtype=section.dtype,
        enforce_eager=question.enforce_eager,
        extra_args=section.extra_args,
        env={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **local, **env, **section.env},
    )


def _url(section: ModelSection, folders: Folders, plain: str) -> str:
    if section.listen == "unix":
        return f"unix:{folders.sockets / (plain + '.sock')}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
