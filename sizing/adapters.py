"""What an engine allocates for LoRA adapters: stacked A and B matrices beside each layer it wraps, filled or not.

Read from vLLM 0.32: lora/model_manager.py says which layers, `create_lora_weights` in lora/layers how large they are.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sizing.adapter_families import FAMILIES, FUSED, KINDS, NO_ADAPTERS, WRAPPERS_LOOKED_AT, Family, Kind
from sizing.adapter_settings import Adapters
from sizing.allocator import slack_bytes
from sizing.architecture import WRAPPERS
from sizing.blueprint import is_spelt_out
from sizing.engine_cache import pipeline_stages
from sizing.errors import QuestionError, UnsupportedModelError
from sizing.held import Weight
from sizing.layers import Attention, Recurrent
from sizing.model import DTYPE_BYTES, ModelShape
from sizing.weights import VOCAB_PADDING

_LARGEST_VOCAB = 258_048  # lora/layers/logits_processor.py
_EXPERTS = "experts"
_HIDDEN_TILE, _WIDTH_TILE = 256, 128  # Marlin rounds MXFP4 experts up, and their adapters with them
_PUNICA_TOKEN_BYTES = 4 * 8 + 2 * 2 * 4  # four int64 (punica_base.py), twice two int32 (lora_kernel_metadata.py)
_PUNICA_SEQUENCE_BYTES = 3 * 8


def check_adapters(adapters: Adapters | None, model: ModelShape, *, enable_expert_parallel: bool = False) -> None:
    """Raises QuestionError for settings that vLLM refuses, UnsupportedModelError for a model without adapters."""
    if adapters is None:
        return
    if adapters.fully_sharded_loras and enable_expert_parallel:
        raise QuestionError(
            "fully_sharded_loras does not go with enable_expert_parallel in vLLM; leave one of them out"
        )
    family = _family(model)
    known = _module_names(model)
    for name in adapters.lora_target_modules:
        if name not in known:
            raise QuestionError(
                f"lora_target_modules names {name!r}, which {model.name} has not; it has {', '.join(sorted(known))}"
            )
    if _has_table("lm_head", adapters, by_default=family.output) and model.vocab_size > _LARGEST_VOCAB:
        raise QuestionError(
            f"{model.name}: vLLM gives an output layer adapters up to {_LARGEST_VOCAB:,} tokens, and this one has "
            f"{model.vocab_size:,}; name the other layers by lora_target_modules"
        )


def indivisible_adapters(adapters: Adapters | None, size: int) -> str | None:
    """Why fully sharded adapters cannot be split over that many ranks; None where they can."""
    if adapters is None or not adapters.fully_sharded_loras or adapters.max_lora_rank % size == 0:
        return None
    return f"does not divide the max_lora_rank {adapters.max_lora_rank} of fully sharded adapters"


def adapter_bytes(
    model: ModelShape,
    adapters: Adapters,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int = 1,
    stage: int = 0,
    enable_expert_parallel: bool = False,
    data_parallel_size: int = 1,
    as_allocated: bool = True,
) -> int:
    """Bytes of the stacked matrices on one rank of one pipeline stage, counted from 0.

    `as_allocated` adds what a GPU's allocator rounds up. Ranks are alike, but for experts that do not divide evenly:
    then it is the fullest.

    Raises:
        UnsupportedModelError: a model that vLLM serves no adapters for, or whose layers are not known by name.
    """
    stages = pipeline_stages(model.num_hidden_layers, pipeline_parallel_size)
    rank = _Rank(
        model,
        adapters,
        _family(model),
        tensor_parallel_size,
        tensor_parallel_size * data_parallel_size,
        enable_expert_parallel,
        stages[stage],
        first=stage == 0,
        last=stage == len(stages) - 1,
    )
    element = DTYPE_BYTES[adapters.lora_dtype] if adapters.lora_dtype else model.dtype_bytes
    total = float(rank.index_bytes)
    for elements, count in rank.stacks().items():
        size = elements * adapters.max_loras * element
        total += count * (size + (slack_bytes(size) if as_allocated else 0.0))
    return round(total)


def punica_bytes(adapters: Adapters, *, max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """What tells the kernels on a GPU which token is whose (punica_base.py, punica_gpu.py)."""
    per_adapter = 2 * 4 * (3 * adapters.max_loras + 4)
    return _PUNICA_TOKEN_BYTES * max_num_batched_tokens + _PUNICA_SEQUENCE_BYTES * max_num_seqs + per_adapter


def shrunk_bytes(adapters: Adapters, model: ModelShape, tokens: int) -> int:
    """What the product of a feed-forward layer's input with its two A matrices takes while it runs.

    In float32, and for each expert that a token visits in the served type (punica_gpu.py, fused_moe_lora_op.py).
    """
    visited = model.num_experts_per_tok - model.num_shared_experts if model.num_moe_layers else 0
    return 2 * tokens * adapters.max_lora_rank * max(4, visited * model.dtype_bytes)


def has_output_adapters(adapters: Adapters, model: ModelShape) -> bool:
    """Whether logits are computed with adapters too, which reorders those of a divided vocabulary in a copy."""
    return _has_table("lm_head", adapters, by_default=_family(model).output)


def _family(model: ModelShape) -> Family:
    architecture = model.architecture
    if architecture in NO_ADAPTERS:
        raise UnsupportedModelError(
            f"{model.name}: vLLM serves no LoRA adapters for {architecture}; leave enable_lora out"
        )
    behind = WRAPPERS[architecture] if architecture in WRAPPERS_LOOKED_AT else ""
    family = FAMILIES.get(architecture) or FAMILIES.get(behind)
    spelt = model.blueprint and is_spelt_out(model) and not model.assumed
    if family is None or not spelt or not model.gated_experts:  # nobody has looked at experts without a gate
        raise UnsupportedModelError(
            f"{model.name}: which of its layers vLLM gives LoRA adapters to is not known here"
            f"{f' ({architecture})' if architecture else ''}; leave enable_lora out to size it without them"
        )
    return family


def _has_table(name: str, adapters: Adapters, *, by_default: bool) -> bool:
    return name in adapters.lora_target_modules if adapters.lora_target_modules else by_default


def _module_names(model: ModelShape) -> set[str]:
    own = {_module(weight) for _, weights in model.layer_kinds for weight in weights if _kind(weight) is not None}
    return {"embed_tokens", "lm_head"} | own | {FUSED[name] for name in own if name in FUSED}


def _module(weight: Weight) -> str:
    return _EXPERTS if weight.split == "experts" else weight.name.rpartition(".")[2]


def _kind(weight: Weight) -> Kind | None:
    """None for what is no linear layer: norms, biases, tables."""
    return KINDS.get(weight.name.rpartition(".")[2]) if len(weight.shape) == 2 else None


@dataclass(frozen=True)
class _Rank:
    """One rank of a stage. Matrices are given in elements of one slot."""

    model: ModelShape
    adapters: Adapters
    family: Family
    ranks: int
    expert_ranks: int
    whole_experts: bool
    layers: range
    first: bool
    last: bool

    def stacks(self) -> Counter[int]:
        """How many stacked matrices there are of each size."""
        found = Counter(self._tables())
        for times, weights in self._layers():
            for elements in (elements for weight in weights for elements in self._of(weight)):
                found[elements] += times
        return found

    @property
    def index_bytes(self) -> int:
        """Which slots are in use, for each mixture, and where each logit of a divided vocabulary belongs (int64)."""
        mixtures = sum(times for times, weights in self._layers() if any(each.split == "experts" for each in weights))
        used = 4 * (self.adapters.max_loras + 1) * mixtures if self._targeted(_EXPERTS) else 0
        if self.ranks == 1 or not (self.last and self._has_output):
            return used
        return used + 8 * -(-self.model.vocab_size // VOCAB_PADDING) * VOCAB_PADDING

    @property
    def _has_output(self) -> bool:
        return _has_table("lm_head", self.adapters, by_default=self.family.output)

    @property
    def _a_rank(self) -> int:
        return self.adapters.max_lora_rank // (self.ranks if self.adapters.fully_sharded_loras else 1)

    def _layers(self) -> Iterator[tuple[int, tuple[Weight, ...]]]:
        """The weights of each kind of layer, and how many of it are on this stage."""
        for indices, weights in self.model.layer_kinds:
            yield sum(index in self.layers for index in indices), weights

    def _of(self, weight: Weight) -> Iterator[int]:
        kind = _kind(weight)
        if kind is not None and self._targeted(_module(weight)):
            yield from self._of_experts(weight, kind) if weight.split == "experts" else self._of_linear(weight, kind)

    def _tables(self) -> Iterator[int]:
        """Whole on every rank (lora/layers/vocab_parallel_embedding.py, logits_processor.py)."""
        vocab, hidden, rank = self.model.vocab_size, self.model.hidden_size, self.adapters.max_lora_rank
        here = self.first or (self.last and self.model.tie_word_embeddings)
        if here and _has_table("embed_tokens", self.adapters, by_default=self.family.embedding):
            yield from (vocab * rank, hidden * rank)
        if self.last and self._has_output:
            yield from (vocab * rank, hidden * rank)

    def _targeted(self, module: str) -> bool:
        """lora/utils.py: is_in_target_modules; naming one part of a fused layer wraps all of it."""
        named = self.adapters.lora_target_modules
        fused = FUSED.get(module, module)
        return not named or module in named or any(FUSED.get(name, name) == fused for name in named)

    def _of_linear(self, weight: Weight, kind: Kind) -> Iterator[int]:
        """lora/layers/base_linear.py and column_parallel_linear.py; a fused layer has an A matrix for each part."""
        (outputs, inputs), rank, sharded = weight.shape, self.adapters.max_lora_rank, self.adapters.fully_sharded_loras
        if kind == "whole":
            yield from (rank * inputs, outputs * rank)
            return
        if kind == "row":
            yield from (rank * inputs // self.ranks, outputs // (self.ranks if sharded else 1) * rank)
            return
        state = next(iter(self.model.cache_layers[weight.layer or 0]), None)
        slices = self.family.slices.get(_module(weight), 1)
        if isinstance(state, Recurrent) and state.groups and _module(weight) in ("in_proj", "conv1d"):
            merged = state.groups % self.ranks == 0
            if merged and sharded:  # vLLM has no wrapper for these, and leaves them without adapters
                return
            slices = _mixer_slices(_module(weight), merged, grouped=outputs == state.groups * state.group_channels)
            inputs = inputs if _module(weight) == "in_proj" else state.conv_tokens + 1
        yield from [self._a_rank * inputs] * slices
        yield outputs // self._divisor(weight, state) * rank

    def _divisor(self, weight: Weight, state: object) -> int:
        if weight.split == "kv":
            heads = state.num_kv_heads if isinstance(state, Attention) else self.model.num_key_value_heads
            return min(self.ranks, heads)
        return 1 if weight.split == "replicated" else self.ranks

    def _of_experts(self, weight: Weight, kind: Kind) -> Iterator[int]:
        """lora/layers/fused_moe.py; without a part of its own the up projection is in the gate's."""
        row, rank, sharded = kind == "row", self.adapters.max_lora_rank, self.adapters.fully_sharded_loras
        hidden, width = weight.shape if row else weight.shape[::-1]
        count, ranks = weight.copies, 1 if self.whole_experts else self.expert_ranks
        if self.whole_experts:
            count = -(-count // self.expert_ranks)
        width //= ranks
        if self.model.held is not None and self.model.held.tiles is not None:
            hidden, width = -(-hidden // _HIDDEN_TILE) * _HIDDEN_TILE, -(-width // _WIDTH_TILE) * _WIDTH_TILE
        shared = self.adapters.enable_moe_shared_loras
        if row:
            yield count * rank * width
            yield (1 if shared else count) * (hidden // (ranks if sharded else 1)) * rank
            return
        apart = self.adapters.enable_mixed_moe_lora_format or shared
        fused = self.family.fused_experts and not apart
        if fused and weight.name.endswith(".up_proj"):
            return
        yield (1 if shared else count) * (rank // (ranks if sharded else 1)) * hidden
        yield count * (2 if fused else 1) * width * rank


def _mixer_slices(module: str, merged: bool, *, grouped: bool) -> int:
    """A matrices of a Mamba-2 mixer's two wide layers: one for all parts, or for each (mamba/mamba_mixer2.py).

    The blueprint has its groups of states apart: gate, channels and time steps are three parts, the groups two.
    """
    if not merged:
        return 0 if grouped else 1
    if module == "conv1d":
        return 2 if grouped else 1
    return 2 if grouped else 3
