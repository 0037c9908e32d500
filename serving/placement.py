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
    for index, (section, shape, number) in enumerate(wanted):
        name = f"{section.name}/{number}"
        try:
            placements.append(put(index, name, section, shape, folders))
        except SizingError as error:
            raise PlacementError(f"{name}: {error}") from error
    return tuple(placements)


Put = Callable[[int, str, ModelSection, ModelShape, Folders], Placement]
_LONGEST_SOCKET_PATH = 107  # sun_path of Linux, less its final zero


def _on_gpus(machine: Machine) -> Put:
    free = list(machine.gpus)

    def put(index: int, name: str, section: ModelSection, shape: ModelShape, folders: Folders) -> Placement:
        if not free:
            raise PlacementError(
                f"{name}: all {len(machine.gpus)} GPUs are taken by the replicas before it; ask for fewer replicas"
            )
        like = sorted((gpu for gpu in free if gpu.name == free[0].name), key=lambda gpu: -gpu.free_bytes)
        question, found = _on_fewest(name, section, shape, like)
        taken = like[: found.settings.tensor_parallel_size]
        for gpu in taken:
            free.remove(gpu)
        indices = ",".join(str(gpu.index) for gpu in taken)
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": indices}
        return Placement(
            _spec(index, name, section, question, found, folders, env), question, found, f"{taken[0].name} {indices}"
        )

    return put


def _on_fewest(name: str, section: ModelSection, shape: ModelShape, cards: Sequence[Device]) -> tuple[Question, Answer]:
    """The smallest number of the emptiest cards that will do; the fullest of them speaks for all: ranks are alike."""
    for count in range(section.tensor_parallel_size or 1, len(cards)):
        question = _question(section, shape, cards[count - 1], count)
        found = answer(question)
        if found.fits:
            return question, found
    question = _question(section, shape, cards[-1], len(cards))
    return question, _fitting(name, question)


def _on_cpu(cpu: Device, cores: Sequence[int], replicas: int) -> Put:
    left = {"bytes": cpu.free_bytes, "replicas": replicas}

    def put(index: int, name: str, section: ModelSection, shape: ModelShape, folders: Folders) -> Placement:
        share = replace(cpu, free_bytes=left["bytes"] // left["replicas"])
        number = replicas - left["replicas"]
        question = _question(section, shape, share, 1)
        found = _fitting(name, question)
        left["bytes"] -= found.claimed_bytes
        left["replicas"] -= 1
        env = _core_binding(cores, number, replicas)
        where = f"CPU cores {env['VLLM_CPU_OMP_THREADS_BIND']}" if env else "CPU"
        return Placement(_spec(index, name, section, question, found, folders, env), question, found, where)

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
        raise PlacementError(f"{name} does not fit: {found.reason}{_way_out_here(found)}")
    return found


def _way_out_here(found: Answer) -> str:
    """Of the remedies those that this machine allows: more or other cards are for whoever buys them."""
    remedies = (found.way_out or "").removeprefix("try ").split(", or ")
    here = [remedy for remedy in remedies if remedy and not remedy.startswith(("--count ", "--gpu "))]
    return f"; try {', or '.join(here)}" if here else ""


def _spec(
    index: int,
    name: str,
    section: ModelSection,
    question: Question,
    found: Answer,
    folders: Folders,
    env: dict[str, str],
) -> EngineSpec:
    plain = f"{index}-{name.replace('/', '-')}"  # the number keeps a/b and a-b apart
    local = {"HF_HUB_OFFLINE": "1"} if Path(section.model).is_dir() else {}
    return EngineSpec(
        name=name,
        model=section.model,
        served_model_name=section.name,
        settings=found.settings,
        url=_url(section, folders, index),
        log_path=folders.logs / f"{plain}.log",
        dtype=section.dtype,
        enforce_eager=question.enforce_eager,
        extra_args=section.extra_args,
        env={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **local, **env, **section.env},
    )


def _url(section: ModelSection, folders: Folders, index: int) -> str:
    if section.listen == "unix":
        path = folders.sockets / f"{index}.sock"
        if len(str(path).encode()) > _LONGEST_SOCKET_PATH:
            raise PlacementError(f"{path}: too long for a Unix socket; set TMPDIR to a shorter path, or `listen: tcp`")
        return f"unix:{path}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
