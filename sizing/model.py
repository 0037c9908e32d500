"""What a model is to the arithmetic: its shape, its number type and the bytes of its weights."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from sizing.held import HeldWeights, Weight
from sizing.layers import Attention, Layer, Layers, Recurrent

Dtype = Literal["bfloat16", "float16", "float32"]
KvCacheDtype = Literal[
    "auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla", "nvfp4", "nvfp4_ds_mla"
]
WeightsSource = Literal["safetensors headers", "GGUF header", "config"]

DTYPE_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by what tensor parallelism does to them."""

    sharded: int = 0
    """Divided by the tensor-parallel size."""
    kv_projection: int = 0
    """Divided by it as far as there are key-value heads, and replicated beyond."""
    replicated: int = 0
    """Norms, routers, latent down-projections and output biases: whole on every rank."""
    vocab_rows: int = 0
    """Embedding-wide rows that a vocabulary table has: 1 where input and output are tied, else 2."""

    @property
    def total(self) -> int:
        return self.sharded + self.kv_projection + self.replicated

    def times(self, layers: int) -> "ParameterCount":
        """The same in each of that many layers."""
        return ParameterCount(self.sharded * layers, self.kv_projection * layers, self.replicated * layers)

    def __add__(self, other: "ParameterCount") -> "ParameterCount":
        return ParameterCount(
            self.sharded + other.sharded,
            self.kv_projection + other.kv_projection,
            self.replicated + other.replicated,
            self.vocab_rows + other.vocab_rows,
        )


@dataclass(frozen=True)
class Granule:
    """The smallest part of a quantized matrix that has scales of its own: no rank can hold half of one."""

    kind: Literal["block", "group"]
    outputs: int
    inputs: int
    attention: bool = True
    """Whether the attention's projections are quantized too."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder. Where `layers` says nothing else, each of its layers keeps keys and values of every token.

    Sizes are those of the whole model, before tensor parallelism divides them. `dtype` is the type vLLM serves
    in when told nothing, which is not always the type the checkpoint is stored in.
    """

    name: str
    architecture: str
    model_type: str
    dtype: Dtype
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    """What vLLM serves when `--max-model-len` is not given."""
    longest_model_len: int
    """The largest `--max-model-len` that vLLM accepts."""
    tie_word_embeddings: bool
    quantization: str | None
    num_parameters: int
    """Counted from the shape, whatever the checkpoint packs them into."""
    weights_bytes: int
    """As vLLM holds them: a tied output layer once, float32 checkpoints in the served type."""
    weights_source: WeightsSource
    kv_cache_dtype: KvCacheDtype = "auto"
    """What `--kv-cache-dtype auto` becomes for this checkpoint; `auto` means the served type."""
    attention_bias: bool = False
    mlp_bias: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    num_moe_layers: int = 0
    num_shared_experts: int = 0
    """Counted in `num_experts_per_tok`, though no router picks them."""
    expert_hidden_size: int = 0
    """What goes into an expert, where that is narrower than the hidden states; 0: all of them."""
    gated_experts: bool = True
    layers: Layers = field(default=(), repr=False)
    """What each decoder layer keeps; empty: full attention in all of them."""
    parameters: ParameterCount | None = None
    """Counted by the family's own rules; None: by those of a plain decoder."""
    encoder_bytes: int = 0
    """Of the weights: a vision or audio encoder in front of the decoder."""
    undivided_item_tokens: int = 0
    """Of the largest picture or video that vLLM does not cut into batches."""
    largest_picture_bytes: int = 0
    """The most that its encoder holds at once while vLLM profiles it; 0: not known."""
    encoder_output_bytes: int = 0
    """What that encoder hands on for each token; 0: not known."""
    granule: Granule | None = None
    """Of its quantized matrices, where vLLM refuses to cut them."""
    caveat: str | None = None
    """What the sum leaves out for this model, in a sentence."""
    assumed: str | None = None
    """What is not known and was taken to be so, in a sentence; such an answer has a wider band."""
    held: HeldWeights | None = field(default=None, compare=False, repr=False)
    """`weights_bytes` by layer and by what parallelism does to them."""
    blueprint: tuple[Weight, ...] = field(default=(), compare=False, repr=False)
    """The decoder's parameters by name."""
    predictor: "ModelShape | None" = field(default=None, compare=False, repr=False)
    """The prediction layers (MTP) that it brings, as a model without tables of its own; loaded only to draft."""
    aux_hidden_states: int = field(default=0, compare=False, repr=False)
    """Of an EAGLE-3 head: how many of its model's layers it reads."""
    table_bytes: int = field(default=0, compare=False, repr=False)
    """Of an EAGLE head: an embedding in its files, which is on the card only where it is not equal to the model's."""

    @cached_property
    def cache_layers(self) -> Layers:
        """What each decoder layer keeps, spelt out."""
        full = Attention(self.num_key_value_heads, self.head_dim, self.head_dim)
        return self.layers or ((full,),) * self.num_hidden_layers

    @cached_property
    def distinct_layers(self) -> tuple[Layer, ...]:
        """Each kind of cache the model keeps, once, in the order of its layers."""
        return tuple(dict.fromkeys(layer for caches in dict.fromkeys(self.cache_layers) for layer in caches))

    @cached_property
    def layer_types(self) -> frozenset[type[Layer]]:
        return frozenset(type(layer) for layer in self.distinct_layers)

    @cached_property
    def layer_kinds(self) -> tuple[tuple[tuple[int, ...], tuple[Weight, ...]], ...]:
        """The blueprint's layers, those that are alike together: their numbers, and the weights of the first."""
        of_layer: dict[int, list[Weight]] = {}
        for weight in self.blueprint:
            if weight.layer is not None:
                of_layer.setdefault(weight.layer, []).append(weight)
        alike: dict[object, list[int]] = {}
        for index, weights in of_layer.items():
            parts = tuple(
                (each.name.partition(f".{index}.")[2], each.shape, each.split, each.copies) for each in weights
            )
            alike.setdefault((self.cache_layers[index], parts), []).append(index)
        return tuple((tuple(indices), tuple(of_layer[indices[0]])) for indices in alike.values())

    @property
    def expert_input_size(self) -> int:
        return self.expert_hidden_size or self.hidden_size

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert of one layer: up, down and, where it has one, gate projection."""
        return (3 if self.gated_experts else 2) * self.expert_input_size * self.moe_intermediate_size

    @cached_property
    def has_attention(self) -> bool:
        """Whether any layer keeps something of each token, and not a state alone."""
        return any(not isinstance(layer, Recurrent) for layer in self.distinct_layers)

    @property
    def has_encoder(self) -> bool:
        """Whether an image or audio encoder stands in front of the decoder, weighed or not."""
        return self.caveat is not None or self.encoder_bytes > 0

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    def served_as(self, dtype: Dtype) -> "ModelShape":
        """The same model under vLLM's `--dtype`: unquantized weights and the cache take the new type's bytes."""
        if self.quantization or DTYPE_BYTES[dtype] == self.dtype_bytes:
            return replace(self, dtype=dtype, predictor=self.predictor.served_as(dtype) if self.predictor else None)
        scale = DTYPE_BYTES[dtype] / self.dtype_bytes
        held = self.held.scaled(scale) if self.held else None
        return replace(
            self,
            dtype=dtype,
            weights_bytes=held.weights_bytes if held else round(self.weights_bytes * scale),
            encoder_bytes=round(self.encoder_bytes * scale),
            held=held,
            predictor=self.predictor.served_as(dtype) if self.predictor else None,
            table_bytes=round(self.table_bytes * scale),
        )
