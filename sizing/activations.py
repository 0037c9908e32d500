"""The activation peak of vLLM's profile run: a full batch through the layers, or every sequence's logits sampled.

vLLM profiles at start: encoder, then `max_num_batched_tokens` through the layers, then the sampler on `max_num_seqs`
rows (v1/worker/gpu_model_runner.py and v1/worker/gpu/model_runner.py: profile_run). The two do not overlap, so the
larger one is the peak.
"""

from dataclasses import dataclass

from sizing.adapter_settings import Adapters
from sizing.adapters import has_output_adapters, shrunk_bytes
from sizing.drafters import Drafter
from sizing.gpu import GIB
from sizing.layers import Latent, Recurrent
from sizing.model import ModelShape
from sizing.overheads import Band, Overheads, exactly
from sizing.release import Release

_WORKSPACE_KEPT = 18  # v1/worker/workspace.py, for every kernel of mixtures
# vllm/config/vllm.py: use_v2_model_runner and DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES
_SECOND_RUNNER = 24
_SECOND_RUNNER_DENSE = 25
_SECOND_RUNNER_ALL = 29
_SECOND_RUNNER_FIRST_MODELS = frozenset({"Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"})
_SECOND_RUNNER_MIXTURES = frozenset({"DeepseekV2ForCausalLM", "Qwen2MoeForCausalLM", "GraniteMoeForCausalLM"})
_MLA_WORKSPACE_TOKENS = 64 * 1024  # vllm/model_executor/layers/attention/mla_attention.py: its upper bound
_MLA_EXPANDED_WIDTH = 256  # no-position key and value of one head, where the layers are only counted


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
    first_stage: bool = True,
    enforce_eager: bool = False,
    expert_ranks: int | None = None,
    drafter: Drafter | None = None,
    adapters: Adapters | None = None,
) -> Peak:
    """The highest of the peaks; only the last pipeline stage samples, and drafts.

    The hidden states of the whole batch stay alive while the last of each sequence is sampled, and so do the
    mixture's workspaces where they belong to the runner. `expert_ranks` share each expert, by default those of tensor
    parallelism. What an EAGLE-3 head reads is alive from the forward pass until it has read it.
    """
    tokens, element = batch.max_num_batched_tokens, model.dtype_bytes
    ranks = expert_ranks or tensor_parallel_size
    workspace = tokens * element * _expert_workspace(model, ranks, enable_expert_parallel)
    width = _dense_width(model, tensor_parallel_size)
    forward = overheads.forward_copies.scaled(tokens * width * element)
    forward += exactly(workspace + _latent_workspace(model, batch, tensor_parallel_size, max_model_len))
    read = drafter.aux_hidden_states * tokens * model.hidden_size * element if drafter else 0
    forward += exactly(read + (shrunk_bytes(adapters, model, tokens) if adapters else 0))
    peak = Peak(forward, f"forward pass of {tokens:,} tokens (max_num_batched_tokens)")
    if last_stage:
        rows = min(batch.max_num_seqs, tokens)
        sampler = _sampler_bytes_per_logit(model, release, overheads).scaled(rows * model.vocab_size)
        alive = tokens * model.hidden_size * element + (workspace if release.minor >= _WORKSPACE_KEPT else 0)
        sampler += exactly(alive + _reordered_bytes(model, adapters, rows, tensor_parallel_size))
        if sampler.value > forward.value:
            peak = Peak(sampler, f"sampling {rows:,} sequences (max_num_seqs) over {model.vocab_size:,} tokens")
        # whichever is the peak, it is at least as high as the other might be
        peak = Peak(Band(peak.bytes.value, max(forward.low, sampler.low), max(forward.high, sampler.high)), peak.why)
    drafts = drafter.model if drafter else None
    if drafts is not None:
        # beside the model's hidden states: those it reads once more side by side, and its own pass over the batch
        beside = tokens * element * (model.hidden_size + _expert_workspace(drafts, ranks, enable_expert_parallel))
        beside += 2 * read if read else 2 * tokens * drafts.hidden_size * element
        drafting = overheads.forward_copies.scaled(tokens * _dense_width(drafts, tensor_parallel_size) * element)
        drafting += exactly(beside)
        if drafting.value > peak.bytes.value:
            peak = Peak(drafting, f"drafting over {tokens:,} tokens (max_num_batched_tokens)")
        peak = Peak(
            Band(peak.bytes.value, max(peak.bytes.low, drafting.low), max(peak.bytes.high, drafting.high)), peak.why
        )
    if first_stage and not enforce_eager:
        peak = _first_start(peak, _compiled_table(model, release, tensor_parallel_size), model, release)
    floor = overheads.second_runner_floor_gib if second_runner(model, release) else _floor(release, overheads)
    return Peak(peak.bytes + floor.scaled(GIB), peak.why)


def _first_start(peak: Peak, table: float, model: ModelShape, release: Release) -> Peak:
    """The peak where nothing is compiled yet; a later start finds that work done, and has the old one.

    Expected of the second runner, most of whose logged starts show it; of the first two sources in four do, so there
    it only widens the band. Three starts of twelve since 0.27 lost those bytes to the allocator as well.
    """
    if table <= peak.bytes.value:
        return peak
    high = max(peak.bytes.high, table + (table if release.counts_what_stays else 0.0))
    if not second_runner(model, release):
        return Peak(Band(peak.bytes.value, peak.bytes.low, high), peak.why)
    return Peak(Band(table, peak.bytes.low, high), "first start: compiling times kernels on a second embedding")


def _compiled_table(model: ModelShape, release: Release, tp: int) -> float:
    """The embedding that a compiled forward pass reads, which is made up once more to time kernels on it.

    Where Inductor joins kernels it first runs them on random inputs as large as the real ones (combo_kernels and
    benchmark_combo_kernel, vllm/config/compilation.py). Beside an encoder the tokens are embedded before the graph.
    """
    if not release.times_joined_kernels or model.has_encoder:
        return 0.0
    return model.vocab_size * model.hidden_size * model.dtype_bytes / tp


def _reordered_bytes(model: ModelShape, adapters: Adapters | None, rows: int, tp: int) -> int:
    """The copy of a divided vocabulary's logits in their right order, before adapters add to them."""
    if adapters is None or tp == 1 or not has_output_adapters(adapters, model):
        return 0
    return rows * model.vocab_size * model.dtype_bytes


def _floor(release: Release, overheads: Overheads) -> Band:
    return overheads.activation_floor_gib.at(Release(0) if release.engine == "V0" else release)


def second_runner(model: ModelShape, release: Release) -> bool:
    """Whether vLLM serves the model by its second model runner (vllm/config/vllm.py: use_v2_model_runner)."""
    if release.minor >= _SECOND_RUNNER_ALL:
        return True
    if release.minor < _SECOND_RUNNER:
        return False
    if model.architecture in _SECOND_RUNNER_MIXTURES:
        return True
    if release.minor < _SECOND_RUNNER_DENSE:
        return model.architecture in _SECOND_RUNNER_FIRST_MODELS
    return not model.num_experts and Recurrent not in model.layer_types


def penalty_state_bytes(model: ModelShape, batch: Batch, release: Release) -> int:
    """What the second model runner keeps for repetition penalties: a counter and a bit for each token and sequence.

    v1/worker/gpu/sample/penalties.py: output_bin_counts and prompt_bin_mask. It is made between the weights and the
    profile run: 0 where the budget does not see that.
    """
    if not second_runner(model, release) or not release.counts_what_stays:
        return 0
    return batch.max_num_seqs * (4 * model.vocab_size + 4 * -(-model.vocab_size // 32))


def _sampler_bytes_per_logit(model: ModelShape, release: Release, overheads: Overheads) -> Band:
    """The logits in the served type, and what sampling adds to them."""
    if second_runner(model, release):
        added = overheads.sampler_in_place
    else:
        added = overheads.sampler_v0 if release.engine == "V0" else overheads.sampler.at(release)
    return added + exactly(model.dtype_bytes)


def _dense_width(model: ModelShape, tp: int) -> float:
    """Elements per token, in units of `forward_copies`: the feed-forward width on this rank and the hidden states."""
    dense = model.intermediate_size > 0 and model.num_moe_layers < model.num_hidden_layers
    return (model.intermediate_size / tp if dense else 0.0) + model.hidden_size


def _expert_workspace(model: ModelShape, tp: int, expert_parallel: bool) -> float:
    """Elements per token of the two buffers that a mixture's kernels work in.

    For each expert that a token visits, the wider of its gate-and-up projection and its inputs, and the wider of its
    activation and its inputs (layers/fused_moe/modular_kernel.py: workspace13 and workspace2). The
    kernels that take MXFP4 as it is bring their own.
    """
    if not model.num_moe_layers or model.quantization == "mxfp4":
        return 0.0
    width = model.moe_intermediate_size / (1 if expert_parallel else tp)
    routed = model.num_experts_per_tok - model.num_shared_experts
    projected, inputs = (2 if model.gated_experts else 1) * width, model.expert_input_size
    return routed * (max(projected, inputs) + max(width, inputs))


def _latent_workspace(model: ModelShape, batch: Batch, tp: int, max_model_len: int) -> float:
    """Latent vectors of earlier chunks expanded to keys and values, simulated at its largest during the profile run."""
    if Latent not in model.layer_types:
        return 0.0
    tokens = min(max(8 * max_model_len, 4 * batch.max_num_seqs * 16), _MLA_WORKSPACE_TOKENS)
    up = next((weight for weight in model.blueprint if weight.name.endswith(".kv_b_proj")), None)
    width = up.shape[0] / model.num_attention_heads if up is not None else _MLA_EXPANDED_WIDTH
    return tokens * model.num_attention_heads / tp * width * model.dtype_bytes
