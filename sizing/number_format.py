"""How many bytes a matrix takes in each of the number formats that quantized checkpoints come in."""

from dataclasses import dataclass

_BITS = 8


@dataclass(frozen=True)
class NumberFormat:
    """Packed numbers, and what has to be kept beside them. A matrix is (outputs, inputs)."""

    name: str
    bits: int
    """Of one number."""
    channel_bytes: int = 0
    """For each output: its scale."""
    group_size: int = 0
    """Inputs that share one scale; 0: no groups, -1: all inputs of an output."""
    group_bits: int = 0
    """For each group of each output: its scale, and its zero point where it has one."""
    block: tuple[int, int] | None = None
    """Outputs and inputs that share a float32 scale."""
    input_bytes: int = 0
    """For each input: the group it belongs to, where they are not in order."""

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        total = -(-outputs * inputs * self.bits // _BITS)
        total += outputs * self.channel_bytes + inputs * self.input_bytes
        if self.group_size:
            groups = 1 if self.group_size < 0 else -(-inputs // self.group_size)
            total += -(-groups * outputs * self.group_bits // _BITS)
        if self.block is not None:
            rows, columns = self.block
            total += -(-outputs // rows) * -(-inputs // columns) * _FLOAT32_BYTES
        return total


_FLOAT32_BYTES = 4
_SCALE_BITS = 16  # AWQ's and GPTQ's scales are in the served type

FP8_TENSOR = NumberFormat("FP8, one scale per matrix", 8)
FP8_CHANNEL = NumberFormat("FP8, a scale per output", 8, channel_bytes=_FLOAT32_BYTES)
FP8_BLOCK = NumberFormat("FP8 in blocks of 128 x 128", 8, block=(128, 128))
INT8_CHANNEL = NumberFormat("INT8, a scale per output", 8, channel_bytes=_FLOAT32_BYTES)
# two numbers to a byte, an FP8 scale for each 16; a power of two for each 32
NVFP4 = NumberFormat("NVFP4", 4, group_size=16, group_bits=8)
MXFP4 = NumberFormat("MXFP4", 4, group_size=32, group_bits=8)
MXFP8 = NumberFormat("MXFP8", 8, group_size=32, group_bits=8)
# blocks of 64 with a one-byte maximum each, and a float32 for each 256 of those (bitsandbytes' double quantization)
NF4 = NumberFormat("NF4", 4, group_size=64, group_bits=8)
# with the maxima left in float32
NF4_SINGLE = NumberFormat("NF4, maxima in float32", 4, group_size=64, group_bits=32)


def integers(bits: int, group_size: int, *, zero_points: bool, ordered: bool = True) -> NumberFormat:
    """AWQ, GPTQ and their like: groups of inputs with a 16-bit scale, and a zero point as wide as a number."""
    return NumberFormat(
        f"INT{bits} in groups of {group_size}",
        bits,
        group_size=group_size,
        group_bits=_SCALE_BITS + (bits if zero_points else 0),
        input_bytes=0 if ordered else 2 * _FLOAT32_BYTES,  # the group of each input, and the order that sorts them
    )
