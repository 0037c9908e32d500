"""What one engine start says about each term of the sum that was predicted for it."""

from collections.abc import Mapping
from datetime import date

from sizing.calibration import TERMS, CalibratedTerm, Observation, card_name
from sizing.gpu import GIB, Device, link_of
from sizing.startup_log import StartupRecord


def observations(
    record: StartupRecord,
    predicted_terms: Mapping[str, int],
    *,
    model: str,
    device: Device,
    as_of: date,
) -> tuple[Observation, ...]:
    """What a start says about each term that was predicted for it, in bytes per rank and without calibration.

    "KV cache" is to be among the predicted only where prediction and start had the same limit to share out. It is
    compared after the terms that the log measures have been put in, so that it holds only what they do not explain
    (vLLM 0.8 to 0.25 log neither activations nor non-torch memory), and correcting all of them counts nothing twice.
    A measurement that cannot be (the profiler on unified memory gives negative ones) is left out.
    """
    if device.kind == "cpu":
        measured = _measured_on_cpu(record, predicted_terms)
    else:
        measured = _measured(record, predicted_terms)
        explained = _explained_kv(record, predicted_terms, measured)
        known = {name: size for name, size in predicted_terms.items() if name != "KV cache"}
        predicted_terms = known if explained is None else {**known, "KV cache": explained}
    return tuple(
        Observation(
            term=term,
            gpu="cpu" if device.kind == "cpu" else card_name(device.name),
            link=link_of(device),
            tensor_parallel_size=record.tp or 1,
            release=record.vllm or "",
            predicted_bytes=predicted_terms[term],
            measured_bytes=measured[term],
            model=model,
            as_of=as_of,
            settings=_settings(record),
        )
        for term in TERMS
        if term in measured and term in predicted_terms and _possible(term, predicted_terms[term], measured[term])
    )


def _possible(term: CalibratedTerm, predicted_bytes: int, measured_bytes: int) -> bool:
    if term == "KV cache":
        return measured_bytes > 0
    least = 0 if term == "non-torch" else 1  # the others are compared by ratio
    return min(predicted_bytes, measured_bytes) >= least


def _measured(record: StartupRecord, predicted: Mapping[str, int]) -> dict[CalibratedTerm, int]:
    """The terms as this release defines them; what it does not say or says only as a sum is left out."""
    graphs = _graphs_taken_gib(record, predicted)
    activations, non_torch = record.act_gib, record.nontorch_gib
    if record.consumed_gib is not None:  # 0.27 and later
        activations = None if activations is None or graphs is None else activations - graphs
        state_gib = predicted.get("sampler state", 0) / GIB  # allocated by then, and known exactly
        non_torch = None if record.load_gib is None else record.consumed_gib - record.load_gib - state_gib
    found: dict[CalibratedTerm, float | None] = {
        "weights": record.load_gib,
        "activations": activations,
        "non-torch": non_torch,
        "CUDA graphs": graphs,
        "KV cache": record.kv_gib,
    }
    return {term: round(size * GIB) for term, size in found.items() if size is not None}


def _graphs_taken_gib(record: StartupRecord, predicted: Mapping[str, int]) -> float | None:
    """What the budget gave up for CUDA graphs: the estimate, by default since 0.20; never what they took later.

    Where none is predicted (the second model runner before 0.29, ROCm before 0.26) none was made.
    """
    if record.enforce_eager or record.engine == "V0" or "CUDA graphs" not in predicted:
        return 0.0
    by_default = record.release is None or record.release >= (0, 20)
    applied = by_default if record.cg_applied is None else record.cg_applied
    return record.cg_est_gib if applied else 0.0


def _explained_kv(
    record: StartupRecord, predicted: Mapping[str, int], measured: Mapping[CalibratedTerm, int]
) -> int | None:
    """The KV bytes predicted, had every measured term been known; None where no such comparison can be made."""
    if "KV cache" not in predicted or record.kv_cache_memory_bytes is not None or "weights" not in measured:
        return None
    if record.consumed_gib is not None and "activations" not in measured:
        return None
    known = [term for term in TERMS if term in measured and term in predicted and term != "KV cache"]
    return predicted["KV cache"] + sum(predicted[term] - measured[term] for term in known)


def _measured_on_cpu(record: StartupRecord, predicted: Mapping[str, int]) -> dict[CalibratedTerm, int]:
    """vLLM profiles no processor. Its checkpoint's size is the weights', unless they are held in another type."""
    weights = predicted.get("weights")
    if record.ckpt_gib is None or not weights:
        return {}
    held = round(record.ckpt_gib * GIB)
    return {"weights": held} if abs(held / weights - 1) < 0.25 else {}  # another type is off by half or by double


def _settings(record: StartupRecord) -> str:
    stated = {
        "dtype": record.dtype,
        "quantization": record.quant,
        "max_model_len": record.max_model_len,
        "max_num_seqs": record.max_num_seqs,
        "max_num_batched_tokens": record.max_num_batched_tokens,
        "gpu_memory_utilization": record.gmu,
        "kv_cache_dtype": record.kv_dtype,
        "enforce_eager": record.enforce_eager,
    }
    return ", ".join(f"{name} {value}" for name, value in stated.items() if value is not None)
