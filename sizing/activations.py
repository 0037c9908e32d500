"""The activation peak of vLLM's profile run: a full batch through the layers, or every sequence's logits sampled.

vLLM profiles at start: encoder, then `max_num_batched_tokens` through the layers, then the sampler on `max_num_seqs`
rows (v1/worker/gpu_model_runner.py and v1/worker/gpu/model_runner.py: profile_run). The two do not overlap, so the
larger one is the peak.
"""

from dataclasses import dataclass

from sizing.layers import Latent
from sizing.model import ModelShape
from sizing.overheads import Band, Overheads
from sizing.release import Release

_RUNNER_2_EVERYWHERE = 29  # the first minor version in which every model runs on the second model runner
_RUNNER_2_FIRST = 24
_MASKING_SAMPLER = 17
# vllm/config/vllm.py: DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES of 0.24 and of 0.27
_RUNNER_2_MODELS = {
    24: frozenset(
        {
            "Qwen3ForCausalLM",
            "DeepseekV2ForCausalLM",
            "Qwen2MoeForCausalLM",
            "GraniteMoeForCausalLM",
            "LlamaForCausalLM",
            "MistralForCausalLM",
        }
    ),
    27: frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"}),
}
_MLA_WORKSPACE_TOKENS = 64 * 1024  # vllm/model_executor/layers/attention/mla_attention.py: its upper bound
_MLA_EXPANDED_WIDTH = 256  # no-position key and value of one head, in every DeepSeek-like model published so far


@dataclass(frozen=True)
class Batch:
    """The most that one engine step works on."""

    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True)
class Peak:
    """Bytes on one rank, and what reaches them."""

    bytes: Band
    why: str


def activation_peak(
    model: ModelShape,
    batch: Batch,
    *,
    tensor_parallel_size: int,
    enable_expert_parallel: bool,
    release: Release,
    last_stage: bool,
    max_model_len: int,
    overheads: Overheads,
) -> Peak:
    """The higher of the two peaks; only the last pipeline stage samples."""
    tokens = batch.max_num_batched_tokens
    width = _forward_width(model, tensor_parallel_size, enable_expert_parallel)
    forward = overheads.forward_copies.scaled(tokens * width * model.dtype_bytes)
    forward = _plus(forward, _latent_workspace(model, batch, tensor_parallel_size, max_model_len))
    peak = Peak(forward, f"forward pass of {tokens:,} tokens (max_num_batched_tokens)")
    if last_stage:
        rows = min(batch.max_num_seqs, tokens)
        sampler = _sampler(model, release, overheads).scaled(rows * model.vocab_size)
        if sampler.value > forward.value:
            peak = Peak(sampler, f"sampling {rows:,} sequences (max_num_seqs) over {model.vocab_size:,} tokens")
        # whichever is the peak, it is at least as high as the other might be
        peak = Peak(Band(peak.bytes.value, max(forward.low, sampler.low), max(forward.high, sampler.high)), peak.why)
    floor = overheads.activation_floor_gib.scaled(2**30)
    return Peak(Band(*(getattr(peak.bytes, at) + getattr(floor, at) for at in ("value", "low", "high"))), peak.why)


def second_runner(model: ModelShape, release: Release) -> bool:
    """Whether vLLM serves the model by its second model runner (vllm/config/vllm.py: use_v2_model_runner)."""
    if release.minor >= _RUNNER_2_EVERYWHERE:
        return True
    for since in sorted(_RUNNER_2_MODELS, reverse=True):
        if release.minor >= since:
            return model.architecture in _RUNNER_2_MODELS[since]
    return False


def penalty_state_bytes(model: ModelShape, batch: Batch, release: Release) -> int:
    """What the second model runner keeps for repetition penalties: a counter and a bit for each token and sequence.

    v1/worker/gpu/sample/penalties.py: output_bin_counts and prompt_bin_mask.
    """
    if not second_runner(model, release):
        return 0
    return batch.max_num_seqs * (4 * model.vocab_size + 4 * -(-model.vocab_size // 32))


def _sampler(model: ModelShape, release: Release, overheads: Overheads) -> Band:
    if second_runner(model, release):
        return overheads.sampler_in_place
    return overheads.sampler_masking if release.minor >= _MASKING_SAMPLER else overheads.sampler_sorting


def _forward_width(model: ModelShape, tp: int, expert_parallel: bool) -> float:
    """Elements per token that are alive at once, in units of `forward_copies`.

    A dense layer: its feed-forward width on this rank and the hidden states. A mixture keeps, for each token and
    expert it visits, the wider of gate-and-up and output, and the activation between them (fused_moe.py: the
    intermediate caches).
    """
    dense = model.intermediate_size / tp + model.hidden_size
    if not model.num_moe_layers:
        return dense
    expert_width = model.moe_intermediate_size / (1 if expert_parallel else tp)
    visited = model.num_experts_per_tok * (max(2 * expert_width, model.hidden_size) + expert_width)
    mixture = visited / 3 + model.hidden_size
    return max(dense, mixture) if model.num_moe_layers < model.num_hidden_layers else mixture


def _latent_workspace(model: ModelShape, batch: Batch, tp: int, max_model_len: int) -> float:
    """Latent vectors of earlier chunks expanded to keys and values, simulated at its largest during the profile run."""
    if Latent not in model.layer_types:
        return 0.0
    tokens = min(max(8 * max_model_len, 4 * batch.max_num_seqs * 16), _MLA_WORKSPACE_TOKENS)
    return tokens * model.num_attention_heads / tp * _MLA_EXPANDED_WIDTH * model.dtype_bytes


def _plus(band: Band, extra: float) -> Band:
    return Band(band.value + extra, band.low + extra, band.high + extra)
