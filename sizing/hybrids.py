"""Families whose layers are spelt out kind by kind, by the names of their architectures."""

from collections.abc import Callable, Mapping

from sizing.anatomy import Anatomy
from sizing.config_values import ConfigValues
from sizing.latent_stacks import bailing_linear, longcat_flash, minicpm3
from sizing.layers import Layer
from sizing.mamba import falcon_h1, granite_hybrid, jamba, mamba1, mamba2
from sizing.matrices import Parts
from sizing.model import ModelShape
from sizing.nemotron import nemotron_h
from sizing.recurrent import olmo_hybrid
from sizing.short_convolutions import lfm2, lfm2_moe
from sizing.stacks import Stack, counted
from sizing.uneven_stacks import laguna, mimo_v2, step3_text
from sizing.whisper import whisper
from sizing.zamba import zamba2

HYBRIDS: Mapping[str, Callable[[ConfigValues], Stack]] = {
    "FalconH1ForCausalLM": falcon_h1,
    "FalconMambaForCausalLM": mamba1,
    "GraniteMoeHybridForCausalLM": granite_hybrid,
    "JambaForCausalLM": jamba,
    "Lfm2ForCausalLM": lfm2,
    "Lfm2MoeForCausalLM": lfm2_moe,
    "Mamba2ForCausalLM": mamba2,
    "MambaForCausalLM": mamba1,
    "NemotronHForCausalLM": nemotron_h,
    "OlmoHybridForCausalLM": olmo_hybrid,
    "WhisperForConditionalGeneration": whisper,
    "Zamba2ForCausalLM": zamba2,
    "BailingMoeV2_5ForCausalLM": bailing_linear,
    "LagunaForCausalLM": laguna,
    "LongcatFlashForCausalLM": longcat_flash,
    "MiMoV2FlashForCausalLM": mimo_v2,
    "MiMoV2ForCausalLM": mimo_v2,
    "MiniCPM3ForCausalLM": minicpm3,
    "Step3TextForCausalLM": step3_text,
}


def hybrid(architecture: str, config: ConfigValues) -> Anatomy:
    """The layers and the parameters of a family of HYBRIDS.

    Raises:
        ModelFileError: a size is missing or impossible.
        UnsupportedModelError: a kind of layer that is not sized.
    """
    return counted(HYBRIDS[architecture](config), config)


def hybrid_layer(config: ConfigValues, shape: ModelShape, index: int, _: tuple[Layer, ...]) -> Parts:
    """One layer's parameters."""
    stack = HYBRIDS[shape.architecture](config)
    yield from stack.kinds[stack.order[index]].weights
