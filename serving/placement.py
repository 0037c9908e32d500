"""Which engine goes where: the first option that sizing has for each, on cards or parts of cards of its own."""

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serving.adapter_flags import adapters_of
from serving.config import ModelSection
from serving.engine import EngineSpec
from serving.errors import PlacementError
from sizing.detect import Machine
from sizing.drafters import Drafter
from sizing.errors import SizingError
from sizing.gpu import Device
from sizing.hub import load_model
from sizing.islands import CardGroup
from sizing.memory import Corrections
from sizing.model import ModelShape
from sizing.packing import Packing, Placed, Wanted, pack
from sizing.plan import answer
from sizing.question import Answer, Question
from sizing.ranking import Rejected, Want
from sizing.release import NEWEST, Release
from sizing.remedy import here_only
from sizing.speculation import drafter, read_speculation
from sizing.weights import quantized


@dataclass(frozen=True, slots=True)
class Placement:
    """One engine, the question sizing was asked about it, and the answer it is started by."""

    spec: EngineSpec
    question: Question
    answer: Answer
    where: str
    notes: tuple[str, ...] = ()
    """What was decided for the asker, and what could be had beside it."""
    rejected: tuple[Rejected, ...] = ()
    """What else there was, and why not."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the sockets and logs of this run go."""

    sockets: Path
    logs: Path


Model = tuple[ModelSection, ModelShape]
_LONGEST_SOCKET_PATH = 107  # sun_path of Linux, less its final zero


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the engines beside their models: the vLLM installed, and what earlier starts said."""

    release: Release = NEWEST
    corrections: Corrections | None = None


def place(
    models: Sequence[Model], machine: Machine, cores: Sequence[int], folders: Folders, known: Known | None = None
) -> tuple[Placement, ...]:
    """Place every replica of every model, or raise PlacementError with the numbers and the nearest way out.

    GPUs are given as sizing packs them: whole where there are enough. On a machine without one the replicas share
    memory and cores evenly.
    """
    if machine.gpus:
        return _on_gpus(models, machine, folders, known or Known())
    wanted = [(section, shape, number) for section, shape in models for number in range(section.replicas)]
    put = _on_cpu(machine.cpu, cores, len(wanted))
    placements = []
    for index, (section, shape, number) in enumerate(wanted):
        name = f"{section.name}/{number}"
        try:
            placements.append(put(index, name, section, shape, folders))
        except SizingError as error:
            raise PlacementError(f"{name}: {error}") from error
    return tuple(placements)


Put = Callable[[int, str, ModelSection, ModelShape, Folders], Placement]


def _on_gpus(models: Sequence[Model], machine: Machine, folders: Folders, known: Known) -> tuple[Placement, ...]:
    wanted = [_wanted(section, shape, machine.gpus[0], known) for section, shape in models]
    try:
        packing = pack(wanted, machine.gpus, quantized=quantized)
    except SizingError as error:
        raise PlacementError(str(error)) from error
    for left_out in packing.unplaced:
        name = f"{left_out.name}/{left_out.number}"
        raise PlacementError(f"{name}: {left_out.why}" if left_out.alone else f"{name} does not fit: {left_out.why}")
    sections = {section.name: section for section, _ in models}
    return tuple(
        _placement(index, sections[placed.name], placed, packing, folders)
        for index, placed in enumerate(packing.placed)
    )


def _wanted(section: ModelSection, shape: ModelShape, device: Device, known: Known) -> Wanted:
    try:
        model = quantized(shape, section.quantization) if section.quantization else shape
        question = replace(_question(section, model, device, 1), release=known.release, corrections=known.corrections)
    except SizingError as error:
        raise PlacementError(f"{section.name}: {error}") from error
    want = Want(
        pipeline_parallel_size=section.pipeline_parallel_size, enable_expert_parallel=section.enable_expert_parallel
    )
    return Wanted(section.name, question, section.replicas, want)


def _placement(index: int, section: ModelSection, placed: Placed, packing: Packing, folders: Folders) -> Placement:
    engine, group = placed.engine, placed.engine.group
    names = [card.mig_uuid or str(card.index) for card in group.cards]
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(names)}
    name = f"{placed.name}/{placed.number}"
    spec = _spec(index, name, section, engine.question, engine.answer, folders, env)
    spec = replace(spec, quantization=section.quantization or placed.variant.quantization)
    first = placed.number == 0
    return Placement(
        spec,
        engine.question,
        engine.answer,
        _where(group),
        tuple(_notes(placed, packing)),
        placed.options.why_not if first and placed.options else (),
    )


def _where(group: CardGroup) -> str:
    """`H100 0,1`; stages of unlike cards one by one."""
    parts: dict[str, list[str]] = {}
    for card in group.cards:
        parts.setdefault(card.name, []).append(card.mig_uuid or str(card.index))
    return " + ".join(f"{name} {','.join(indices)}" for name, indices in parts.items())


def _notes(placed: Placed, packing: Packing) -> list[str]:
    """In sentences: a context that was cut, what changes answers, a card that is shared, cards that nobody uses."""
    found = [placed.engine.answer.note] if placed.engine.answer.note else []
    variant = placed.variant
    if variant.flags:
        found.append(f"with {', '.join(variant.flags)}, since it does not fit or holds too little without")
    found += variant.costs
    if placed.shares:
        found.append("shares its card, so its KV cache is given in bytes")
    if not placed.engine.answer.certain:
        found.append("a close call: it may not start if its terms are at the bad end of their bands")
    if placed.number == 0:
        found += _idle(placed, packing)
    return found


def _idle(placed: Placed, packing: Packing) -> list[str]:
    """How many replicas more the cards that nobody is on would hold, of the kind this model is on."""
    cards = placed.engine.group.cards
    alike = sum(card.name == cards[0].name for card in packing.idle)
    more = 0 if placed.shares else alike // len(cards)
    if not more or len({card.name for card in cards}) > 1:
        return []
    replicas = sum(each.name == placed.name for each in packing.placed)
    are = "is" if alike == 1 else "are"
    return [
        f"{alike} more {cards[0].name} {are} idle; replicas: {replicas + more} would use {more * len(cards)} of them"
    ]


def _on_cpu(cpu: Device, cores: Sequence[int], replicas: int) -> Put:
    left = {"bytes": cpu.free_bytes, "replicas": replicas}

    def put(index: int, name: str, section: ModelSection, shape: ModelShape, folders: Folders) -> Placement:
        if section.quantization:
            raise PlacementError(f"{name}: quantization {section.quantization} is done on a GPU; leave it out here")
        share = replace(cpu, free_bytes=left["bytes"] // left["replicas"])
        number = replicas - left["replicas"]
        question = _question(section, shape, share, 1)
        found = _fitting(name, question)
        left["bytes"] -= found.claimed_bytes
        left["replicas"] -= 1
        env = _core_binding(cores, number, replicas)
        where = f"CPU cores {env['VLLM_CPU_OMP_THREADS_BIND']}" if env else "CPU"
        spec = _spec(index, name, section, question, found, folders, env)
        return Placement(spec, question, found, where, notes=(found.note,) if found.note else ())

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
        pipeline_parallel_size=section.pipeline_parallel_size or 1,
        enable_expert_parallel=bool(section.enable_expert_parallel),
        max_model_len=section.max_model_len,
        max_num_seqs=section.max_num_seqs,
        max_num_batched_tokens=section.max_num_batched_tokens,
        gpu_memory_utilization=section.gpu_memory_utilization,
        kv_cache_memory_bytes=section.kv_cache_memory_bytes,
        kv_cache_dtype=section.kv_cache_dtype,
        enforce_eager=_eager(section, device),
        speculative=_drafter(section, shape),
        adapters=adapters_of(section.extra_args),
    )


def _drafter(section: ModelSection, shape: ModelShape) -> Drafter | None:
    """What drafts for the model, read like the model itself: without its weights."""
    if section.speculative_config is None:
        return None
    asked = read_speculation(dict(section.speculative_config))
    return drafter(asked, shape, lambda ref, revision, head: load_model(ref, revision=revision, head=head))


def _eager(section: ModelSection, device: Device) -> bool:
    """On a CPU compiling costs minutes at each start and gains little; on a GPU graphs are worth their wait."""
    return device.kind == "cpu" if section.enforce_eager is None else section.enforce_eager


def _fitting(name: str, question: Question) -> Answer:
    found = answer(question)
    if not found.fits:
        raise PlacementError(f"{name} does not fit: {found.reason}{here_only(found.way_out)}")
    return found


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
    drafts = section.speculative_config or {}
    folders_only = all(Path(str(ref)).is_dir() for ref in (section.model, drafts.get("model")) if ref)
    local = {"HF_HUB_OFFLINE": "1"} if folders_only else {}
    return EngineSpec(
        name=name,
        model=section.model,
        served_model_name=section.name,
        settings=found.settings,
        url=_url(section, folders, index),
        log_path=folders.logs / f"{plain}.log",
        dtype=section.dtype,
        enforce_eager=question.enforce_eager,
        speculative_config=json.dumps(dict(drafts)) if drafts else None,
        kv_events_path=_kv_events_path(section, folders, index),
        extra_args=section.extra_args,
        env={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **local, **env, **section.env},
    )


def _url(section: ModelSection, folders: Folders, index: int) -> str:
    if section.listen == "unix":
        return f"unix:{_short(folders.sockets / f'{index}.sock', 'set TMPDIR to a shorter path, or `listen: tcp`')}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def _kv_events_path(section: ModelSection, folders: Folders, index: int) -> Path | None:
    if not section.kv_events:
        return None
    _short(folders.sockets / f"{index}.events", "set TMPDIR to a shorter path, or leave out `kv_events`")
    return folders.sockets / str(index)


def _short(path: Path, way_out: str) -> Path:
    if len(str(path).encode()) > _LONGEST_SOCKET_PATH:
        raise PlacementError(f"{path}: too long for a Unix socket; {way_out}")
    return path
