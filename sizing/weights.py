"""What a model's weights weigh once vLLM holds them, and what of that one rank of an engine holds."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sizing.allocator import slack_bytes
from sizing.blueprint import is_spelt_out
from sizing.engine_cache import pipeline_stages
from sizing.errors import QuestionError
from sizing.ggml import Mixture
from sizing.held import ExpertTiles, HeldWeights, Portion, Split, Weight
from sizing.layers import Latent, Recurrent
from sizing.model import ModelShape
from sizing.quantization import Quantization
from sizing.release import NEWEST, Release
from sizing.schemes import named_quantization
from sizing.stage_tables import stage_tables
from sizing.towers import Encoder

VOCAB_PADDING = 64  # vllm/model_executor/layers/vocab_parallel_embedding.py: DEFAULT_VOCAB_PADDING_SIZE
_EXPERT = re.compile(r"\.experts\.(?:\d+|\*)\.")
_QKV = re.compile(r"\b(?:[qkv]_proj|attn_[qkv])\b")
_GATE_UP = re.compile(r"\b(?:gate_proj|up_proj|w1|w3|ffn_gate|ffn_up|ffn_gate_exps|ffn_up_exps)\b")
_SAME_FORMAT = 0.25  # a stored format within that of the one asked for is taken to be it


@dataclass(frozen=True)
class Piece:
    """Some bytes of the model, and where parallelism puts them."""

    split: Split
    layer: int | None
    num_bytes: int
    name: str = ""
    """Of the matrix it is, or is the larger part of; empty where it is none."""
    matrix_bytes: int = 0
    """Without what stands beside the numbers, which are other tensors."""


def pieces(
    blueprint: Iterable[Weight], dtype_bytes: int, quantization: Quantization | None, *, num_layers: int
) -> list[Piece]:
    """What each weight takes under that quantization, or unquantized."""
    weights = list(blueprint)
    tied = not any(weight.split == "output" for weight in weights)
    mixture = quantization.mixture if quantization else None
    if mixture is not None:
        return _gguf_pieces(weights, dtype_bytes, mixture, num_layers=num_layers, tied=tied)
    found = []
    for weight in weights:
        number_format = quantization.format_of(weight) if quantization else None
        if number_format is None:
            matrix_bytes = num_bytes = weight.num_elements * dtype_bytes
        else:
            outputs, inputs = weight.shape
            num_bytes = weight.copies * number_format.matrix_bytes(outputs, inputs)
            matrix_bytes = weight.num_elements * number_format.bits // 8
            if weight.name.endswith("kv_b_proj"):  # latent attention decodes with a copy of it that is not packed
                num_bytes += weight.num_elements * dtype_bytes
        found.append(Piece(weight.split, weight.layer, num_bytes, weight.name, matrix_bytes))
    return found


def _gguf_pieces(
    weights: Sequence[Weight], dtype_bytes: int, mixture: Mixture, *, num_layers: int, tied: bool
) -> list[Piece]:
    """vLLM pads the rows of a layer's query, key and value matrices to the widest of them."""
    found = []
    for weight in weights:
        ggml = mixture.type_of(weight, num_layers, tied=tied)
        if ggml is None:
            found.append(Piece(weight.split, weight.layer, weight.num_elements * dtype_bytes))
            continue
        row_bytes = ggml.num_bytes(weight.shape[-1])
        if weight.name.endswith((".q_proj", ".k_proj")):
            values = mixture.type_of(replace(weight, name="v_proj"), num_layers, tied=tied)
            row_bytes = max(row_bytes, values.num_bytes(weight.shape[-1]) if values else 0)
        rows = weight.num_elements // weight.shape[-1]
        found.append(Piece(weight.split, weight.layer, rows * row_bytes, weight.name, rows * row_bytes))
    return found


def held(
    found: Sequence[Piece],
    shape: ModelShape,
    *,
    buffers: int = 0,
    tiles: ExpertTiles | None = None,
    encoder: Encoder | None = None,
) -> HeldWeights:
    """The pieces summed by layer. What stands outside the layers and is not a table of the vocabulary is a norm.

    `encoder` says what of the encoder's pieces is whole on each rank, and which tables it has besides; None: nothing.
    """
    layers: list[dict[Split, int]] = [{} for _ in range(shape.num_hidden_layers)]
    ends: dict[Split, int] = {}
    for piece in found:
        sums = ends if piece.layer is None else layers[piece.layer]
        sums[piece.split] = sums.get(piece.split, 0) + piece.num_bytes
    portions = tuple(_portion(layer) for layer in layers)
    whole = Portion()
    for portion in portions:
        whole += portion
    return HeldWeights(
        layers=portions,
        decoder=whole,
        embedding=ends.get("embedding", 0),
        output=ends.get("output", 0),
        last_norm=sum(size for split, size in ends.items() if split not in ("embedding", "output", "encoder")),
        encoder=ends.get("encoder", 0),
        encoder_whole=round(ends.get("encoder", 0) * encoder.whole / encoder.num_parameters) if encoder else 0,
        encoder_by_heads=round(ends.get("encoder", 0) * encoder.by_heads / encoder.num_parameters) if encoder else 0,
        encoder_heads=encoder.heads if encoder else 1,
        encoder_whole_in=encoder.whole_in if encoder else (Release(0), Release(0)),
        latent=any(isinstance(cache, Latent) for caches in shape.layers for cache in caches),
        buffers=buffers + (encoder.buffers * shape.dtype_bytes if encoder else 0),
        num_key_value_heads=shape.num_key_value_heads,
        num_experts=shape.num_experts,
        vocab_size=shape.vocab_size,
        tiles=tiles,
        stage_tables=stage_tables(shape.architecture),
        tensors=_tensors(found) if is_spelt_out(shape) else (),
    )


def _tensors(found: Iterable[Piece]) -> tuple[tuple[Portion, int], ...]:
    """The layers' matrices, those that vLLM fuses as one, counted by size."""
    fused: dict[tuple[int, str], dict[Split, int]] = {}
    for piece in found:
        if piece.layer is not None and piece.matrix_bytes:
            sums = fused.setdefault((piece.layer, _fused(piece.name)), {})
            sums[piece.split] = sums.get(piece.split, 0) + piece.matrix_bytes
    return tuple(Counter(_portion(sums) for sums in fused.values()).items())


def _fused(name: str) -> str:
    """vllm/model_executor/models: packed_modules_mapping, and the experts' two matrices."""
    name = _EXPERT.sub(".experts.", name)
    return _GATE_UP.sub("gate_up_proj", _QKV.sub("qkv_proj", name))


def _portion(sums: Mapping[Split, int]) -> Portion:
    return Portion(sums.get("sharded", 0), sums.get("kv", 0), sums.get("replicated", 0), sums.get("experts", 0))


def expert_tiles(shape: ModelShape, method: str | None) -> ExpertTiles | None:
    """What the kernels for MXFP4 round up; None in other formats."""
    if method not in ("mxfp4", "gpt_oss_mxfp4") or not shape.num_experts:
        return None
    return ExpertTiles(shape.hidden_size, shape.moe_intermediate_size)


def weights_per_rank(
    shape: ModelShape,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
    data_parallel_size: int = 1,
    compute_major: int | None = None,
    as_allocated: bool = True,
    release: Release = NEWEST,
) -> tuple[int, ...]:
    """Bytes that one rank of each pipeline stage holds, rotary tables and padding included; first stage first.

    The ranks of a stage hold alike, but for experts that do not divide evenly: then it is the fullest. Ranks of
    data parallelism share the experts and repeat the rest, as vLLM's do. `compute_major` is the card's compute
    capability before the dot, on which the padding of MXFP4 experts depends. `as_allocated` adds what a GPU's
    allocator rounds up and what the release has allocated with the model, as "Model loading took" does.
    """
    whole, tp = _held(shape), tensor_parallel_size
    stages = pipeline_stages(shape.num_hidden_layers, pipeline_parallel_size)
    padded = -(-whole.vocab_size // VOCAB_PADDING) * VOCAB_PADDING / whole.vocab_size / tp
    embedding, output = whole.embedding * padded, whole.output * padded
    slack = 0.0
    if as_allocated:
        ranks = 1 if enable_expert_parallel else tp * data_parallel_size
        slack = sum(count * slack_bytes(_share(part, whole, tp, ranks)) for part, count in whole.tensors)
        embedding, output = embedding + slack_bytes(embedding), output + slack_bytes(output)
    workspace = release.latent_workspace_bytes if as_allocated and whole.latent and compute_major is not None else 0
    found = []
    for number, stage in enumerate(stages):
        portion = whole.decoder if len(stages) == 1 else sum((whole.layers[layer] for layer in stage), Portion())
        size = _dense_share(portion, whole, tp) + slack * len(stage) / shape.num_hidden_layers
        size += _experts(
            portion,
            whole,
            tp * data_parallel_size,
            whole_experts=enable_expert_parallel,
            compute_major=compute_major,
            release=release,
        )
        size += whole.buffers + whole.encoder_per_rank(tp, release) + workspace  # every stage builds the encoder
        last = number == len(stages) - 1
        if number == 0 or (last and not whole.output) or whole.stage_tables != "none":
            size += embedding
        if last or whole.stage_tables == "both":
            size += output + whole.last_norm
        found.append(round(size))
    return tuple(found)


def _share(portion: Portion, whole: HeldWeights, tp: int, expert_ranks: int) -> float:
    """One rank's bytes of it, experts divided among so many."""
    return _dense_share(portion, whole, tp) + portion.experts / expert_ranks


def _dense_share(portion: Portion, whole: HeldWeights, tp: int) -> float:
    return portion.sharded / tp + portion.kv / min(tp, whole.num_key_value_heads) + portion.replicated


def weights_per_rank_bytes(
    shape: ModelShape,
    tensor_parallel_size: int,
    *,
    compute_major: int | None = None,
    as_allocated: bool = True,
    release: Release = NEWEST,
) -> int:
    """What one of `tensor_parallel_size` ranks holds of a model that is not split into stages."""
    return weights_per_rank(
        shape,
        tensor_parallel_size=tensor_parallel_size,
        compute_major=compute_major,
        as_allocated=as_allocated,
        release=release,
    )[0]


def _experts(
    portion: Portion,
    whole: HeldWeights,
    ranks: int,
    *,
    whole_experts: bool,
    compute_major: int | None,
    release: Release,
) -> float:
    if not portion.experts:
        return 0.0
    share = -(-whole.num_experts // ranks) / whole.num_experts if whole_experts else 1 / ranks
    growth = whole.tiles.growth(1 if whole_experts else ranks, compute_major, release) if whole.tiles else 1.0
    return portion.experts * share * growth


def _held(shape: ModelShape) -> HeldWeights:
    whole = shape.held
    if whole is None or whole.weights_bytes != shape.weights_bytes or len(whole.layers) != shape.num_hidden_layers:
        raise QuestionError(
            f"{shape.name}: its weights are not those that were weighed; make its shape by parse_config or load_model"
        )
    return whole


def quantized(shape: ModelShape, scheme: str) -> ModelShape:
    """The model under `--quantization SCHEME`, or as the checkpoint that its publisher packed that way.

    A checkpoint that is packed already keeps its own format, which must be about as large as the one asked for.

    Raises:
        QuestionError: an unknown scheme, or a checkpoint of another format.
    """
    wanted = named_quantization(scheme, model=shape.name)
    if wanted.method == "modelopt_fp4":
        kinds = {type(cache) for caches in shape.layers for cache in caches}
        # published ones leave latent attention and delta nets alone
        kept = [name for kind, name in ((Latent, "self_attn"), (Recurrent, "linear_attn")) if kind in kinds]
        wanted = replace(wanted, ignore=tuple(kept), match="substring") if kept else wanted
    current = _held(shape)
    found = pieces(shape.blueprint, shape.dtype_bytes, wanted, num_layers=shape.num_hidden_layers)
    packed = held(found, shape, buffers=current.buffers, tiles=expert_tiles(shape, wanted.method))
    packed = replace(
        packed,
        encoder=current.encoder,
        encoder_whole=current.encoder_whole,
        encoder_by_heads=current.encoder_by_heads,
        encoder_heads=current.encoder_heads,
        encoder_whole_in=current.encoder_whole_in,
        latent=current.latent,
        stage_tables=current.stage_tables,
    )
    if shape.quantization is not None:
        if abs(packed.weights_bytes - current.weights_bytes) > _SAME_FORMAT * current.weights_bytes:
            raise QuestionError(
                f"{shape.name}: its checkpoint is already quantized with {shape.quantization}, which is not {scheme}; "
                "leave the quantization out, or give the unquantized model"
            )
        return shape
    return replace(
        shape,
        quantization=wanted.method,
        weights_bytes=packed.weights_bytes,
        weights_source="config",
        held=packed,
        predictor=quantized(shape.predictor, scheme) if shape.predictor else None,
    )
