"""Which ways of dividing a model over ranks vLLM refuses, each with the file that refuses it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sizing.layers import Latent, Recurrent
from sizing.model import Granule, ModelShape
from sizing.release import NEWEST, Release

_INTEGER_METHODS = frozenset({"awq", "gptq", "auto-round", "auto_round", "inc", "intel/auto-round"})
_SMALLEST_PART = 32  # of an expert's groups (layers/quantization/moe_wna16.py) and blocks (fused_moe/oracle/fp8.py)
_REFINES_BLOCKS = Release(29)
_IGNORED = ("ignore", "ignored_layers", "modules_to_not_convert")


def indivisible(
    model: ModelShape,
    size: int,
    *,
    enable_expert_parallel: bool = False,
    data_parallel_size: int = 1,
    release: Release = NEWEST,
) -> str | None:
    """Why vLLM cannot split the model over that many tensor-parallel ranks, or None where it can.

    Experts that are not whole are cut for all ranks of data parallelism together (fused_moe/config.py).

    The vocabulary is no reason: vLLM pads it (layers/vocab_parallel_embedding.py). Nor are experts that do not divide
    under expert parallelism: some ranks hold one more (layers/fused_moe/expert_map_manager.py).
    """
    if size == data_parallel_size == 1:
        return None
    return next(_reasons(model, size, enable_expert_parallel, data_parallel_size, release), None)


def read_granule(section: Mapping[str, object]) -> Granule | None:
    """The rows and columns of a quantized matrix that must not be cut, from a `quantization_config`.

    None where every row has its scale to itself, or where vLLM pads what it cuts (MXFP4, NVFP4).
    """
    found = _granule(section)
    ignored = next((section[key] for key in _IGNORED if section.get(key)), ())
    spared = isinstance(ignored, list) and any("attn" in str(entry) for entry in ignored)
    return replace(found, attention=False) if found is not None and spared else found


def _granule(section: Mapping[str, object]) -> Granule | None:
    method = str(section.get("quant_method") or "").lower()
    block = section.get("weight_block_size")
    if method == "fp8":
        return _block(block)
    if method in _INTEGER_METHODS:
        size = section.get("group_size", section.get("q_group_size", 128))
        return Granule("group", 1, size) if isinstance(size, int) and size > 1 else None
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        found = _compressed(weights) if isinstance(weights, dict) else None
        if found is not None:
            return found
    return None


def _block(block: object) -> Granule | None:
    if isinstance(block, list) and len(block) == 2 and all(isinstance(side, int) and side > 0 for side in block):
        return Granule("block", block[0], block[1])
    return None


def _compressed(weights: Mapping[str, object]) -> Granule | None:
    """compressed-tensors: FP8 in blocks, or integers in groups of inputs."""
    if weights.get("strategy") == "block":
        return _block(weights.get("block_structure"))
    size = weights.get("group_size")
    if weights.get("type") == "int" and isinstance(size, int) and size > 1:
        return Granule("group", 1, size)
    return None


def _reasons(
    model: ModelShape, size: int, expert_parallel: bool, data_parallel_size: int, release: Release
) -> Iterator[str]:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % size:  # vllm/config/model.py: verify_with_parallel_config
        yield f"does not divide the {heads} {'attention heads' if model.has_attention else 'heads or channels'}"
    if kv_heads % size and size % kv_heads:  # layers/linear.py: QKVParallelLinear divides or replicates them
        yield f"neither divides nor is a multiple of the {kv_heads} key-value heads"
    yield from _states(model, size)
    widths = list(_widths(model, size, expert_parallel, data_parallel_size))
    for width, what, ranks in widths:
        if width % ranks:  # vllm/distributed/utils.py: divide
            yield f"does not divide the {what} {width}" + (f" on {ranks} ranks" if ranks != size else "")
    if model.granule is not None:
        yield from _cuts(model, model.granule, size, widths, release)


def _states(model: ModelShape, size: int) -> Iterator[str]:
    """Heads of recurrent layers, and what groups of them share (layers/mamba/mamba_mixer2.py)."""
    for layer in model.distinct_layers:
        if isinstance(layer, Recurrent) and layer.heads % size:
            yield f"does not divide the {layer.heads} recurrent heads"
        if isinstance(layer, Recurrent) and layer.groups > 1 and layer.groups % size:
            yield f"does not divide the {layer.groups} groups of recurrent heads"


def _widths(model: ModelShape, size: int, expert_parallel: bool, replicas: int) -> Iterator[tuple[int, str, int]]:
    """Feed-forward widths, and over how many ranks they are divided; experts are whole under expert parallelism."""
    if model.num_moe_layers < model.num_hidden_layers and model.intermediate_size:
        yield model.intermediate_size, "feed-forward width", size
    if model.num_moe_layers and not expert_parallel:
        yield model.moe_intermediate_size, "expert width", size * replicas


def _cuts(
    model: ModelShape, granule: Granule, size: int, widths: Sequence[tuple[int, str, int]], release: Release
) -> Iterator[str]:
    """Blocks and groups that would lie on two ranks.

    FP8 blocks: layers/quantization/utils/fp8_utils.py, validate_fp8_block_shape and validate_fp8_block_shape_moe.
    Integer groups: layers/quantization/auto_awq.py, compressed_tensors/schemes/compressed_tensors_wNa16.py and, for
    GPTQ, kernels/linear/mixed_precision/marlin.py. Of an expert vLLM halves the groups of AWQ and GPTQ, and since
    0.29 the blocks of FP8.
    """
    whole = max(granule.outputs, granule.inputs)
    halved = model.quantization in _INTEGER_METHODS if granule.kind == "group" else release >= _REFINES_BLOCKS
    of_expert = min(whole, _SMALLEST_PART) if halved else whole
    parts = [(width // ranks, what, of_expert if what == "expert width" else whole) for width, what, ranks in widths]
    for part, what, unit in [*parts, *_projections(model, granule, size)]:
        if part % unit:
            yield f"leaves {part} of the {what} to a rank, which is no multiple of the {granule.kind} of {unit}"


def _projections(model: ModelShape, granule: Granule, size: int) -> Iterator[tuple[int, str, int]]:
    """The same of plain attention; latent and recurrent layers have projections of their own."""
    plain = not model.layer_types & {Latent, Recurrent}
    if not (plain and granule.attention):
        return
    yield model.num_attention_heads // size * model.head_dim, "query width", granule.inputs
    yield max(1, model.num_key_value_heads // size) * model.head_dim, "key width", granule.outputs
