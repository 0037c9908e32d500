"""Transformers over the patches of a picture or the frames of a sound, counted in parameters from their sizes."""

from dataclasses import dataclass, replace

from sizing.config_defaults import completed
from sizing.config_values import ConfigValues
from sizing.release import Release

_CHANNELS = 3  # red, green and blue
EVER = Release(0)


@dataclass(frozen=True)
class Encoder:
    """An encoder's parameters by what tensor parallelism does to them (vllm/model_executor/models)."""

    sharded: int = 0
    """Matrices of parallel layers, and the biases of those that are divided by outputs."""
    whole: int = 0
    """On every rank: patches, positions, norms, and what is a plain or a replicated layer."""
    by_heads: int = 0
    """Attention that is divided where the ranks divide its heads, and whole where they do not."""
    heads: int = 1
    buffers: int = 0
    """Tables that are computed, in no checkpoint, and on every rank."""
    whole_in: tuple[Release, Release] = (EVER, EVER)
    """From the first of these releases to before the second every rank held all of it."""
    estimated: str = ""
    """What of it is not counted, in words; empty where all is."""

    @property
    def num_parameters(self) -> int:
        return self.sharded + self.whole + self.by_heads

    def __add__(self, other: "Encoder") -> "Encoder":
        """Both, divided as each is; the heads are those of the one that has attention of its own kind."""
        return replace(
            self,
            sharded=self.sharded + other.sharded,
            whole=self.whole + other.whole,
            by_heads=self.by_heads + other.by_heads,
            heads=max(self.heads, other.heads),
            buffers=self.buffers + other.buffers,
            estimated=self.estimated or other.estimated,
        )

    def undivided(self) -> "Encoder":
        """The same on every rank: modules that are Transformers' own, or made of plain layers."""
        return replace(self, sharded=0, by_heads=0, whole=self.num_parameters)


def part(values: ConfigValues, key: str, model_type: str) -> ConfigValues:
    """A section of the file with its config class's defaults."""
    return ConfigValues(values.name, completed(values.section(key), model_type))


def blocks(
    hidden: int, width: int, layers: int, *, biased: bool = True, gated: bool = False, norms: int = 4
) -> Encoder:
    """A transformer's layers. `norms`: vectors in each layer; two LayerNorms have four, two RMSNorms two."""
    matrices = 3 if gated else 2
    sharded = 4 * hidden * hidden + matrices * hidden * width
    whole = norms * hidden
    if biased:  # the biases of what a row-parallel matrix gives are not divided
        sharded += 3 * hidden + (matrices - 1) * width
        whole += 2 * hidden
    return Encoder(layers * sharded, layers * whole)


def pair(into: int, between: int, out: int, *, bias: bool = True) -> Encoder:
    """Two layers, the first divided by its outputs and the second by its inputs."""
    return Encoder(into * between + between * out + (between if bias else 0), out if bias else 0)


def line(into: int, out: int, *, bias: bool = True) -> Encoder:
    """One layer that every rank has."""
    return Encoder(whole=into * out + (out if bias else 0))


def patches(vision: ConfigValues, hidden: int, patch: int | None = None, *, bias: bool, frames: int = 1) -> Encoder:
    side = side_of(vision, "patch_size", patch)
    return Encoder(whole=_CHANNELS * frames * side * side * hidden + (hidden if bias else 0))


def positions(
    vision: ConfigValues, hidden: int, image: int | None = None, *, patch: int | None = 14, more: int = 0
) -> Encoder:
    side = side_of(vision, "image_size", image) // side_of(vision, "patch_size", patch)
    return Encoder(whole=(side * side + more) * hidden)


def side_of(vision: ConfigValues, key: str, default: int | None = None) -> int:
    """A size that some files give for both sides."""
    both = vision.values.get(key)
    if isinstance(both, list) and both:
        return ConfigValues(vision.name, {key: both[0]}).count(key)
    return vision.count(key, default=default)


def taken_layers(total: int, taken: object) -> int:
    """How many of its layers are built where the features are taken behind some (`vision_feature_layer`).

    vllm/model_executor/models/vision.py: get_layer_index.
    """
    indexes = [index for index in (taken if isinstance(taken, list) else [taken]) if isinstance(index, int)] or [-1]
    return min(total, max(total + index + 1 if index < 0 else index for index in indexes))


def siglip(vision: ConfigValues, *, taken: object = -1, last_norm: bool | None = None) -> Encoder:
    """SigLIP's, up to the deepest layer that is asked for. The norm behind the last layer goes with that one."""
    hidden, width, total = (vision.count(key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    layers = taken_layers(total, taken)
    rows = vision.values.get("num_patches")  # the second SigLIP's files count them
    if isinstance(rows, int) and rows > 0:
        places = Encoder(whole=rows * hidden)
    else:
        places = positions(vision, hidden, patch=None)
    found = patches(vision, hidden, bias=True) + places + blocks(hidden, width, layers)
    ends = layers == total if last_norm is None else last_norm
    return found + Encoder(whole=2 * hidden if ends else 0)


def clip(vision: ConfigValues, *, taken: object = -1, last_norm: bool | None = None) -> Encoder:
    """CLIP's: a vector for the whole picture, and a norm before the layers, but no bias where patches enter."""
    hidden, width, total = (vision.count(key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    layers = taken_layers(total, taken)
    embeddings = patches(vision, hidden, bias=False) + positions(vision, hidden, patch=None, more=1)
    ends = layers == total if last_norm is None else last_norm
    return embeddings + blocks(hidden, width, layers) + Encoder(whole=hidden + 2 * hidden + (2 * hidden if ends else 0))


def pixtral(vision: ConfigValues, *, taken: object = -1) -> Encoder:
    """Pixtral's: gated, without biases, one norm before the layers."""
    hidden, width = vision.count("hidden_size"), vision.count("intermediate_size")
    layers = taken_layers(vision.count("num_hidden_layers"), taken)
    found = patches(vision, hidden, bias=False) + blocks(hidden, width, layers, biased=False, gated=True, norms=2)
    return found + Encoder(whole=hidden)


def intern_vit(
    vision: ConfigValues, *, taken: object = -1, whole_attention: bool = False, more_heads: int = 0
) -> Encoder:
    """InternViT's: scales behind both parts of a layer. `whole_attention`: its projections are plain layers.

    In vllm/model_executor/models/intern_vit.py they are so too where the ranks do not divide the heads, to which a
    family may add empty ones.
    """
    heads = vision.count("num_attention_heads")
    hidden, width = vision.count("hidden_size"), vision.count("intermediate_size")
    layers = taken_layers(vision.count("num_hidden_layers"), taken)
    rms, biased = vision.values.get("norm_type", "layer_norm") == "rms_norm", _says_bias(vision)
    normed = bool(vision.values.get("qk_normalization") or vision.values.get("use_qk_norm"))
    across = hidden // heads * (heads + more_heads)
    attention = 4 * hidden * across + (3 * across if biased else 0)
    norms = (2 if rms else 4) * hidden + (2 * across if normed else 0) + 2 * hidden  # and the two scales
    layer = Encoder(sharded=2 * hidden * width + width, whole=norms + 2 * hidden, heads=heads + more_heads)
    found = patches(vision, hidden, 14, bias=True) + positions(vision, hidden, 448, more=1) + Encoder(whole=hidden)
    attention_whole = layers * attention if whole_attention else 0
    return found + replace(
        layer,
        sharded=layers * layer.sharded,
        whole=layers * layer.whole + attention_whole,
        by_heads=layers * attention - attention_whole,
    )


def _says_bias(vision: ConfigValues) -> bool:
    key = "qkv_bias" if "qkv_bias" in vision.values else "attention_bias"
    return vision.flag(key, default=False)


def spectrum(audio: ConfigValues, *, fused: bool = True, places: bool = True) -> Encoder:
    """Whisper's: two convolutions over the spectrum, positions, and layers. Fused, keys have a bias beside the others'.

    Without `places` the positions are no parameters.
    """
    hidden, width, layers = (audio.count(key) for key in ("d_model", "encoder_ffn_dim", "encoder_layers"))
    convolutions = 3 * hidden * (audio.count("num_mel_bins", default=80) + hidden) + 2 * hidden
    table = audio.count("max_source_positions", default=1500) * hidden if places else 0
    keys = 0 if fused else layers * hidden
    found = blocks(hidden, width, layers) + Encoder(whole=convolutions + table + 2 * hidden)
    return replace(found, sharded=found.sharded - keys)
