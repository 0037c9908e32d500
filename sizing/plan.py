"""From a Question to its Answer: does it fit, with which settings, and if not, which settings would."""

from dataclasses import replace
from functools import partial

from sizing.activations import Batch
from sizing.adapters import indivisible_adapters
from sizing.division import indivisible
from sizing.drafters import Drafter
from sizing.engine_cache import Caches, Serving
from sizing.errors import QuestionError
from sizing.explicit import as_sure_as_given, with_explicit_kv
from sizing.gpu import GIB, Device, compute_major
from sizing.kv_cache import Capacity, KvCache
from sizing.layers import Latent, Recurrent
from sizing.memory import (
    Budget,
    Engine,
    Parallel,
    batch_limits,
    block_size,
    cpu_budget,
    default_utilization,
    gpu_budget,
    usable_bytes,
)
from sizing.question import Answer, EngineSettings, Question, Range, check, check_layers
from sizing.release import NEWEST, OLDEST, Release
from sizing.remedy import fitting_remedies

_MOST_RANKS = 64
_MOST_CUTS = 6
_FREE_IS_CHECKED = Release(9, 1)
_STATES_ARE_COUNTED = Release(20)
SHORTEST_USEFUL_LEN = 1024
"""A context nobody asked for is never cut below this; a model that holds less does not fit."""


def answer(question: Question) -> Answer:
    """Answer a question by arithmetic alone.

    Raises:
        QuestionError: settings that contradict each other, the model or the device.
    """
    check(question)
    settled = settle(question)
    if settled.fits:
        unified = any(device.unified for device in _stage_devices(question))
        return with_explicit_kv(question, settled, settle)[1] if unified else as_sure_as_given(question, settled)
    remedies = fitting_remedies(question, settled, settle)
    way_out = "try " + ", or ".join(remedy.text for remedy in remedies) if remedies else None
    return replace(settled, way_out=way_out)


def cache_capacity(question: Question, kv_cache_bytes: int) -> Capacity:
    """What vLLM makes of that much memory for the KV cache on each rank, whatever the weights take.

    Raises:
        QuestionError: as `answer`, for what the cache depends on.
    """
    check(question)
    check_layers(question)
    max_model_len = question.max_model_len or question.model.max_model_len
    batch = _batch(question, max_model_len)
    settings = _settings(question, batch, question.tensor_parallel_size or 1, max_model_len)
    return _cache(question, settings, batch).capacity(kv_cache_bytes, max_model_len)


def requests_at_once(question: Question, found: Answer, request_tokens: int) -> int:
    """How many requests of so many tokens, each within the served context, run at once in the engine of that answer."""
    settings = found.settings
    cache = _cache(question, settings, _batch(question, settings.max_model_len))
    available = [budget.kv_cache_bytes for budget in found.budgets]
    return min(cache.requests_fit(available, min(request_tokens, settings.max_model_len)), settings.max_num_seqs)


def settle(question: Question) -> Answer:
    """The answer without a way out: the smallest tensor parallel size, then the longest context, that fits."""
    check_layers(question)
    sizes = _tensor_parallel_sizes(question)
    wanted = question.max_model_len or question.model.max_model_len
    tried = [_evaluate(question, size, wanted) for size in sizes]
    fits = next((attempt for attempt in tried if attempt.fits), None)
    if fits is not None:
        cut = None if fits.certain or question.max_model_len is not None else _shortened(question, fits)
        return cut or fits
    if question.max_model_len is None:
        shortened = [_shortened(question, attempt) for attempt in tried]
        fitting = [attempt for attempt in shortened if attempt is not None]
        if fitting:
            return max(fitting, key=lambda attempt: attempt.settings.max_model_len)
    return tried[-1]


def _tensor_parallel_sizes(question: Question) -> tuple[int, ...]:
    """The sizes to try, smallest first: the one asked for, or the powers of two the cards and the heads allow."""
    asked, stages = question.tensor_parallel_size, question.pipeline_parallel_size
    model = question.model
    replicas = question.data_parallel_size
    rules = partial(
        indivisible,
        enable_expert_parallel=question.enable_expert_parallel,
        data_parallel_size=replicas,
        release=question.release,
    )
    cards = question.count // (stages * replicas)
    if asked is None and cards:
        powers = [2**n for n in range(cards.bit_length()) if 2**n <= cards]
        divide = tuple(
            size
            for size in powers
            if rules(model, size) is None and indivisible_adapters(question.adapters, size) is None
        )
        if divide:
            return divide
        asked = 1  # data parallelism alone cuts the experts too small: say what a single card would be told
    needed = (asked or 1) * stages * replicas
    if asked is None or asked > cards:
        split = f"tensor_parallel_size is {asked or 1}" + (f" in {stages} pipeline stages" if stages > 1 else "")
        split += f" in {replicas} data-parallel engines" if replicas > 1 else ""
        raise QuestionError(f"{split}, but there are {question.count} devices; --count {needed}")
    why = rules(model, asked)
    if why is not None:
        allowed = ", ".join(str(size) for size in range(1, _MOST_RANKS + 1) if rules(model, size) is None)
        way_out = f"one of {allowed}" if allowed else "fewer data-parallel engines, or expert parallelism"
        split = f" in {replicas} data-parallel engines" if replicas > 1 else ""
        raise QuestionError(f"tensor_parallel_size {asked}{split} {why} of {model.name}; use {way_out}")
    why = indivisible_adapters(question.adapters, asked)
    if why is not None:
        raise QuestionError(f"tensor_parallel_size {asked} {why}; use a power of two up to it, or leave it unsharded")
    return (asked,)


def _shortened(question: Question, attempt: Answer) -> Answer | None:
    """The attempt again with the longest context that its memory surely holds; None where none is of use.

    Surely: at the bad end of the terms' bands, since a start that fails costs more than a shorter context. Only where
    that is too short to be of use, and the model's own does not fit, the longest that is likely.
    """
    own = question.model.max_model_len
    useful = min(own, SHORTEST_USEFUL_LEN)
    candidates = [(_surely_longest(question, attempt), "surely does")]
    if not attempt.fits:
        candidates.append((attempt.longest_model_len, "does"))
    for longest, how in candidates:
        if longest < useful:
            continue
        shorter = _evaluate(question, attempt.settings.tensor_parallel_size, longest)
        if not shorter.fits and len(candidates) < _MOST_CUTS:  # V0's batch grows where the context no longer exceeds it
            candidates.append((shorter.longest_model_len, "does"))
        fit = "surely fit" if attempt.fits else "fit"
        note = f"the model's own context of {own:,} tokens does not {fit}; {longest:,} is the longest that {how}"
        if shorter.fits and (shorter.certain or not attempt.fits):
            return replace(shorter, note=_joined(note, shorter.note))
    return None


def _surely_longest(question: Question, attempt: Answer) -> int:
    """The longest context where every stage's KV cache is at the small end of its range; 0 where none."""
    max_model_len = attempt.settings.max_model_len
    cache = _cache(question, attempt.settings, _batch(question, max_model_len))
    return cache.longest_model_len([budget.kv_cache_band[0] for budget in attempt.budgets], max_model_len)


def _evaluate(question: Question, tensor_parallel_size: int, max_model_len: int) -> Answer:
    """One tensor parallel size and one context length: the sum, and whether vLLM would start with it."""
    device, batch = question.device, _batch(question, max_model_len)
    if batch.max_num_batched_tokens < batch.max_num_seqs:
        raise QuestionError(
            f"max_num_batched_tokens is {batch.max_num_batched_tokens}, less than max_num_seqs {batch.max_num_seqs}; "
            "raise the first or lower the second"
        )
    settings = _settings(question, batch, tensor_parallel_size, max_model_len)
    cache = _cache(question, settings, batch)
    budgets = _budgets(question, batch, cache, settings)
    if device.kind == "cpu":
        kv_cache_memory_bytes = question.kv_cache_memory_bytes or max(0, budgets[0].kv_cache_bytes)
        settings = replace(settings, kv_cache_memory_bytes=kv_cache_memory_bytes)
    found = _judged(question, settings, cache, budgets)
    states_short = found.reason is not None and found.num_blocks < batch.max_num_seqs and question.max_num_seqs is None
    if states_short and _too_few_states(question, found.num_blocks, batch.max_num_seqs) and found.num_blocks:
        fewer = _evaluate(replace(question, max_num_seqs=found.num_blocks), tensor_parallel_size, max_model_len)
        note = f"max_num_seqs is lowered from {batch.max_num_seqs:,}: each sequence needs a block of recurrent state"
        return replace(fewer, note=_joined(note, fewer.note)) if fewer.fits else found
    return found


def _batch(question: Question, max_model_len: int) -> Batch:
    return batch_limits(
        question.device,
        max_model_len=max_model_len,
        max_num_seqs=question.max_num_seqs,
        max_num_batched_tokens=question.max_num_batched_tokens,
        release=question.release,
        undivided_item_tokens=question.model.undivided_item_tokens,
    )


def _judged(question: Question, settings: EngineSettings, cache: KvCache, budgets: tuple[Budget, ...]) -> Answer:
    """What vLLM makes of these budgets, one for each pipeline stage."""
    max_model_len = settings.max_model_len
    available = [budget.kv_cache_bytes for budget in budgets]
    # the stage that holds fewest blocks decides
    stage = min(range(len(budgets)), key=lambda at: available[at] / cache.stage_block_bytes[at])
    budget = budgets[stage]
    reason = _refusal(question, budgets, stage, cache, settings)
    capacity = cache.capacity(available, max_model_len)
    low, high = ([budget.kv_cache_band[end] for budget in budgets] for end in (0, 1))
    return Answer(
        fits=reason is None,
        reason=reason,
        way_out=None,
        note=_joined(question.model.assumed, question.model.caveat, _other_rules(question.release)) or None,
        terms=budget.terms,
        limit_bytes=budget.limit_bytes,
        weights_bytes=budget.terms[0].bytes,
        kv_bytes_per_token=cache.bytes_per_token,
        kv_cache_bytes=max(0, budget.kv_cache_bytes),
        kv_cache_tokens=capacity.tokens,
        num_blocks=capacity.num_blocks,
        block_size=cache.block_size,
        max_concurrency=capacity.max_concurrency,
        requests_fit=cache.requests_fit(available, max_model_len),
        claimed_bytes=budget.claimed_bytes,
        needed_kv_bytes=cache.needed_bytes(max_model_len) + cache.block_bytes,
        longest_model_len=cache.longest_model_len(available, max_model_len),
        settings=settings,
        kv_cache_bytes_range=Range(max(0, low[stage]), max(0, high[stage])),
        kv_cache_tokens_range=Range(
            cache.capacity(low, max_model_len).tokens, cache.capacity(high, max_model_len).tokens
        ),
        certain=_starts(question, low, cache, settings) == _starts(question, high, cache, settings)
        or _too_much(question, budgets),
        stage=stage,
        budgets=budgets,
    )


def _cache(question: Question, settings: EngineSettings, batch: Batch) -> KvCache:
    model, device = question.model, question.device
    caches = question.caches if question.caches and question.caches.model is model else Caches(model)
    return caches.of(
        Serving(
            block_size=question.block_size or block_size(device, model, question.kv_cache_dtype),
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            kv_cache_dtype=question.kv_cache_dtype,
            max_num_batched_tokens=batch.max_num_batched_tokens,
            enable_prefix_caching=question.enable_prefix_caching,
            async_scheduling=None if device.kind == "cuda" and _overlaps(question.speculative) else False,
            release=question.release,
            compute_major=compute_major(device.name),
            on_processor=device.kind == "cpu",
            speculative=question.speculative,
        ),
    )


def _overlaps(speculative: Drafter | None) -> bool:
    return speculative is None or speculative.scheduled_async


def _settings(question: Question, batch: Batch, tensor_parallel_size: int, max_model_len: int) -> EngineSettings:
    utilization = None
    if question.device.kind == "cuda" and question.kv_cache_memory_bytes is None:
        utilization = question.gpu_memory_utilization or min(
            default_utilization(device, question.release) for device in _stage_devices(question)
        )
    return EngineSettings(
        max_model_len=max_model_len,
        max_num_seqs=batch.max_num_seqs,
        max_num_batched_tokens=batch.max_num_batched_tokens,
        gpu_memory_utilization=utilization,
        kv_cache_memory_bytes=question.kv_cache_memory_bytes,
        tensor_parallel_size=tensor_parallel_size,
        kv_cache_dtype=question.kv_cache_dtype,
        pipeline_parallel_size=question.pipeline_parallel_size,
        enable_expert_parallel=question.enable_expert_parallel,
        data_parallel_size=question.data_parallel_size,
    )


def _stage_devices(question: Question) -> tuple[Device, ...]:
    return question.stage_devices or (question.device,) * question.pipeline_parallel_size


def _budgets(question: Question, batch: Batch, cache: KvCache, settings: EngineSettings) -> tuple[Budget, ...]:
    if question.device.kind == "cpu":
        return (
            cpu_budget(
                question.model,
                question.device,
                batch,
                cache,
                max_model_len=settings.max_model_len,
                kv_cache_memory_bytes=question.kv_cache_memory_bytes,
                drafter=question.speculative,
                adapters=question.adapters,
            ),
        )
    parallel = Parallel(
        settings.tensor_parallel_size,
        settings.pipeline_parallel_size,
        settings.enable_expert_parallel,
        settings.data_parallel_size,
    )
    known = _known_budgets(question)
    utilization, given = settings.gpu_memory_utilization, settings.kv_cache_memory_bytes
    length = settings.max_model_len if Latent in question.model.layer_types else 0  # whose workspace grows with it
    devices, eager, release = _stage_devices(question), question.enforce_eager, question.release
    key = (devices, parallel, batch, utilization, given, eager, release, length)
    if known is None or key not in known:
        found = _each_stage(question, batch, parallel, settings)
        if known is None:
            return found
        known[key] = found
    return known[key]


def _known_budgets(question: Question) -> dict[tuple[object, ...], tuple[Budget, ...]] | None:
    """Those of a plan, by all that they depend on but the model; None outside one, or with what is not in the key."""
    beside = (question.speculative, question.adapters, question.corrections)
    if question.caches is None or question.caches.model is not question.model or beside != (None, None, None):
        return None
    return question.caches.budgets


def _each_stage(question: Question, batch: Batch, parallel: Parallel, settings: EngineSettings) -> tuple[Budget, ...]:
    engine = Engine(
        parallel,
        batch,
        settings.max_model_len,
        enforce_eager=question.enforce_eager,
        release=question.release,
        corrections=question.corrections,
        drafter=question.speculative,
        adapters=question.adapters,
    )
    return tuple(
        gpu_budget(
            question.model,
            device,
            engine,
            stage=stage,
            gpu_memory_utilization=settings.gpu_memory_utilization or 0.0,
            kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        )
        for stage, device in enumerate(_stage_devices(question))
    )


def _free(question: Question, device: Device) -> int:
    """What vLLM lets an engine claim: since 0.9.1 only what it finds free at start (v1/worker/gpu_worker.py)."""
    looks = question.release.engine == "V1" and question.release >= _FREE_IS_CHECKED
    return usable_bytes(device) if device.kind == "cuda" and looks else device.free_bytes


def _too_much(question: Question, budgets: tuple[Budget, ...]) -> bool:
    """Whether a stage claims memory that is not free on its card."""
    return any(
        budget.claimed_bytes > _free(question, device)
        for budget, device in zip(budgets, _stage_devices(question), strict=True)
    )


def _refusal(
    question: Question, budgets: tuple[Budget, ...], stage: int, cache: KvCache, settings: EngineSettings
) -> str | None:
    """Why vLLM would not start, in its own order: memory that is not free, then too little left for one request."""
    max_model_len, max_num_seqs = settings.max_model_len, settings.max_num_seqs
    for budget, device in zip(budgets, _stage_devices(question), strict=True):
        free = _free(question, device)
        if budget.claimed_bytes > free:
            return (
                f"the engine would take {_gib(budget.claimed_bytes)} of {device.name}, "
                f"where {_gib(max(0, free))} is free"
            )
    available = [budget.kv_cache_bytes for budget in budgets]
    if cache.holds(available, max_model_len):
        return _too_few_states(question, cache.num_blocks(available), max_num_seqs)
    budget = budgets[stage]
    where = f" on pipeline stage {stage}" if len(budgets) > 1 else ""
    block = cache.stage_block_bytes[stage]
    needed = _gib((cache.blocks_per_request(max_model_len) + 1) * block)
    limit = _gib(budget.limit_bytes)
    if budget.kv_cache_bytes <= 0:
        return f"weights and work take {_gib(budget.fixed_bytes)} of {limit}{where}, which leaves no KV cache"
    left = _gib(budget.kv_cache_bytes)
    return (
        f"one request of {max_model_len:,} tokens needs {needed} of KV cache{where}, "
        f"and {left} of {limit} is left for it"
    )


def _starts(question: Question, available: list[int], cache: KvCache, settings: EngineSettings) -> bool:
    """Whether these bytes, one number for each stage, hold a request and a state for each sequence."""
    blocks = cache.num_blocks(available)
    return (
        cache.holds(available, settings.max_model_len)
        and _too_few_states(question, blocks, settings.max_num_seqs) is None
    )


def _too_few_states(question: Question, num_blocks: int, max_num_seqs: int) -> str | None:
    """vLLM captures graphs of `max_num_seqs` sequences, each with a block of recurrent state of its own.

    vllm/config/compilation.py: resolve_cudagraph_mode_and_sizes, since 0.20.
    """
    states = Recurrent in question.model.layer_types
    if not states or question.enforce_eager or question.release < _STATES_ARE_COUNTED or max_num_seqs <= num_blocks:
        return None
    return (
        f"max_num_seqs is {max_num_seqs:,}, and each sequence needs a block for its recurrent state, "
        f"of which {num_blocks:,} fit"
    )


def _other_rules(release: Release) -> str | None:
    """Whose rules these are, where the release's own are not known."""
    if release < OLDEST or release >= Release(NEWEST.minor + 1):
        nearest = min(max(release, OLDEST), NEWEST)
        return f"vLLM {release} is not among the releases whose rules are known: these are {nearest}'s"
    return None


def _joined(*notes: str | None) -> str:
    return "; ".join(note for note in notes if note)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
