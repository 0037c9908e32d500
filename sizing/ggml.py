"""llama.cpp's tensor types: what their blocks weigh, and which of them a file of a given name mixes."""

from collections.abc import Mapping
from dataclasses import dataclass

from sizing.held import Weight


@dataclass(frozen=True)
class GgmlType:
    """Numbers packed in blocks: each of `block_size` numbers takes `block_bytes`."""

    name: str
    block_size: int
    block_bytes: int

    def num_bytes(self, num_elements: int) -> int:
        return -(-num_elements // self.block_size) * self.block_bytes


# ggml/include/ggml.h numbers the types, ggml/src/ggml-common.h lays out their blocks
TYPES: Mapping[int, GgmlType] = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
}
_BY_NAME = {ggml.name: ggml for ggml in TYPES.values()}


@dataclass(frozen=True)
class Mixture:
    """What llama.cpp's quantizer makes of a model when asked for one name (src/llama-quant.cpp)."""

    base: str
    wide: str
    """The output layer, and values and feed-forward outputs of the layers picked below."""
    picks: bool = False
    """The first and last eighth of the layers and every third between them keep wider values and outputs."""

    def type_of(self, weight: Weight, num_layers: int, *, tied: bool) -> GgmlType | None:
        """None where the weight is stored as it is (norms and routers, in float32)."""
        if weight.split == "output" or (weight.split == "embedding" and tied):
            return _whole_blocks(self.wide, weight.shape[-1])
        if not weight.linear and weight.split != "embedding":
            return None
        picked = ("v_proj" in weight.name or "down_proj" in weight.name) and self._keeps(weight.layer, num_layers)
        return _whole_blocks(self.wide if picked else self.base, weight.shape[-1])

    def _keeps(self, layer: int | None, num_layers: int) -> bool:
        if not self.picks or layer is None:
            return False
        eighth = num_layers // 8
        return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


# what llama.cpp takes instead where a row is no whole number of blocks of 256
_NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _whole_blocks(name: str, width: int) -> GgmlType:
    return _BY_NAME[_NARROW[name] if name in _NARROW and width % _BY_NAME[name].block_size else name]


MIXTURES: Mapping[str, Mixture] = {
    "f16": Mixture("F16", "F16"),
    "bf16": Mixture("BF16", "BF16"),
    "q8_0": Mixture("Q8_0", "Q8_0"),
    "q6_k": Mixture("Q6_K", "Q6_K"),
    "q5_k_m": Mixture("Q5_K", "Q6_K", picks=True),
    "q4_k_m": Mixture("Q4_K", "Q6_K", picks=True),
    "q5_0": Mixture("Q5_0", "Q6_K"),
    "q4_0": Mixture("Q4_0", "Q6_K"),
    "q4_1": Mixture("Q4_1", "Q6_K"),
}
