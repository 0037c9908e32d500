"""Where parallelism puts a checkpoint's tensor, told by its name."""

import re

from sizing.headers import Tensor, is_encoder
from sizing.held import Split
from sizing.weights import Piece

_LAYER = re.compile(r"(?:^|\.)(?:layers|blk|h|blocks)\.(\d+)\.")
_EXPERTS = re.compile(
    r"\.experts\.|\.experts_|_exps\.|\.experts$|\.block_sparse_moe\.(?:input|output)_linear\.|\.moe\.(?:gate|up|down)_proj\."
)
_KEYS_VALUES = re.compile(r"\.(?:k_proj|v_proj|attn_k|attn_v|key_value)\.")
# latent attention's down-projections, its indexer, and what picks experts are whole on every rank
_WHOLE = re.compile(
    r"norm|q_a_proj|kv_a_proj|fused_qkv_a|indexer|\.(?:gate|router|shared_expert_gate)\.|fc[12]_latent_proj"
    r"|\.(?:eh_proj|input_proj|mtp_linear_proj)(?:\.\d+)?\.|\.router_|e_score_correction|layer_scalar|layers\.\d+\.linear\.|ffn_gate_inp|attn_q_a|attn_kv_a|rope_freqs"
    r"|\.ln_\w+\.|\.(?:embed_positions|wpe|project_in|project_out|classifier|expert_bias|act_fn)\b"
)
_ROWS = re.compile(
    r"\.(?:o_proj|down_proj|out_proj|w2|attn_output|ffn_down|c_proj|fc2|fc_out|dense|dense_4h_to_h|wo|linear_proj)\."
)
_EMBEDDING = re.compile(
    r"\.(?:embed_tokens|token_embd|wte|word_embeddings|tok_embeddings)\.|^\.(?:\w+\.)?(?:backbone|model)\.embeddings\."
)
_OUTPUT = re.compile(r"^\.output\.|\.(?:lm_head|output_layer)\.")
# what a Mamba-2 mixer makes of the groups of states stands among the rows of these
_GROUPED = re.compile(r"\.(?:mamba|mixer)\.(?:in_proj|conv1d)\.")
_FUSED = re.compile(r"\.(?:qkv_proj|attn_qkv|c_attn|query_key_value|wqkv|Wqkv)\.")
# a module of DBRX's that has the attention in it beside the norms
_NOT_A_NORM = ".norm_attn_norm."


# Step 3's queries come by way of this one
NARROW_QUERIES = re.compile(r"\.self_attn\.q_proj\.")


def pieces_of(
    tensor: Tensor,
    num_bytes: int,
    *,
    multimodal: bool,
    kv_share: float,
    sole_group: int = 0,
    whole: re.Pattern[str] | None = None,
) -> list[Piece]:
    """The parts of one tensor: one, or two where its file fuses what is divided with what is repeated.

    `kv_share` is what keys and values are of a matrix that has the queries too; `sole_group` the rows of a mixer's
    matrices that every rank has, 0 where there are none; `whole` names what else every rank has in this family.
    """
    name = f".{tensor.name}".replace(_NOT_A_NORM, ".")
    if multimodal and is_encoder(tensor):
        return [Piece("encoder", None, num_bytes)]
    if _EMBEDDING.search(name):
        return [Piece("embedding", None, num_bytes)]
    if _OUTPUT.search(name):
        return [Piece("output", None, num_bytes)]
    found = _LAYER.search(name)
    layer = int(found[1]) if found else None
    if layer is not None and _FUSED.search(name) and len(tensor.shape) > 1:
        keys_values = round(num_bytes * kv_share)
        parts: tuple[tuple[Split, int], ...] = (("sharded", num_bytes - keys_values), ("kv", keys_values))
        return [Piece(split, layer, size, tensor.name, size) for split, size in parts]
    if sole_group and tensor.shape and tensor.shape[0] > sole_group and _GROUPED.search(name):
        repeated = round(num_bytes * sole_group / tensor.shape[0])
        parts = (("sharded", num_bytes - repeated), ("replicated", repeated))
        return [Piece(split, layer, size, tensor.name, size) for split, size in parts]
    split = "replicated" if whole is not None and whole.search(name) else _split(name, tensor)
    return [Piece(split, layer, num_bytes, tensor.name, num_bytes)]


def _split(name: str, tensor: Tensor) -> Split:
    if _EXPERTS.search(name):
        return "experts"
    if _WHOLE.search(name) or tensor.num_elements <= 1:
        return "replicated"
    if _ROWS.search(name) and (len(tensor.shape) == 1 or tensor.shape[-1] == 1):
        return "replicated"  # a bias, or a scale for each output, behind a matrix that is divided by inputs
    return "kv" if _KEYS_VALUES.search(name) else "sharded"
