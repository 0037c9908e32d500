"""What a quantization takes and what it leaves: from a config's own section, and by name."""

import pytest

from sizing.config_json import parse_config
from sizing.config_values import ConfigValues
from sizing.errors import ModelFileError, QuestionError, UnsupportedModelError
from sizing.held import Weight
from sizing.model import ModelShape
from sizing.number_format import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR, INT8_CHANNEL, MXFP4, NF4, NVFP4, integers
from sizing.quantization import Quantization
from sizing.quantization_config import read_quantization
from sizing.schemes import named_quantization
from sizing.weights import quantized
from tests.sizing.models import SMOLLM2, published, smollm2

UP = Weight("model.layers.3.mlp.up_proj", (1536, 576), "sharded", 3, linear=True)
QUERY = Weight("model.layers.3.self_attn.q_proj", (576, 576), "sharded", 3, linear=True)
EXPERT = Weight("model.layers.3.mlp.experts.*.up_proj", (1536, 576), "experts", 3, linear=True, copies=8)
ROUTER = Weight("model.layers.3.mlp.gate", (8, 576), "replicated", 3)
OUTPUT = Weight("lm_head", (49152, 576), "output")
NVFP4_SECTION = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.3.self_attn*"]}
INT4_WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
FP8_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel"}


def read(section: dict[str, object]) -> Quantization:
    return read_quantization(ConfigValues("m", {"quantization_config": section}))


def compressed(weights: dict[str, object], *ignore: str, targets: str = "Linear") -> dict[str, object]:
    group = {"targets": [targets], "weights": weights}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": list(ignore)}


def taken(section: dict[str, object]) -> list[str]:
    """The names of those of the five above that are packed."""
    quantization = read(section)
    return [weight.name for weight in (UP, QUERY, EXPERT, ROUTER, OUTPUT) if quantization.format_of(weight)]


@pytest.mark.parametrize(
    ("number_format", "num_bytes"),
    [
        # 4,096 outputs of 14,336 inputs
        (FP8_CHANNEL, 4096 * 14336 + 4096 * 4),
        (FP8_BLOCK, 4096 * 14336 + 32 * 112 * 4),
        (INT8_CHANNEL, 4096 * 14336 + 4096 * 4),
        (integers(4, 128, zero_points=True), 4096 * 7168 + 4096 * 112 * 2 + 4096 * 112 // 2),
        (integers(4, 128, zero_points=False), 4096 * 7168 + 4096 * 112 * 2),
        (integers(4, -1, zero_points=False), 4096 * 7168 + 4096 * 2),
        (integers(4, 128, zero_points=False, ordered=False), 4096 * 7168 + 4096 * 112 * 2 + 14336 * 8),
        (integers(8, 32, zero_points=False), 4096 * 14336 + 4096 * 448 * 2),
        (NVFP4, 4096 * 7168 + 4096 * 896),
        (MXFP4, 4096 * 7168 + 4096 * 448),
        (NF4, 4096 * 7168 + 4096 * 224),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_matrix_by_hand(number_format: object, num_bytes: int) -> None:
    assert number_format.matrix_bytes(4096, 14336) == num_bytes  # type: ignore[attr-defined]  # a NumberFormat


def test_blocks_that_do_not_divide_are_whole_blocks() -> None:
    assert FP8_BLOCK.matrix_bytes(130, 100) == 130 * 100 + 2 * 1 * 4


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"quant_method": "fp8"}, [UP, QUERY, EXPERT]),
        ({"quant_method": "fp8", "modules_to_not_convert": [UP.name, "lm_head"]}, [QUERY, EXPERT]),
        ({"quant_method": "fp8", "ignored_layers": ["model.layers.3.mlp"]}, [QUERY]),
        ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["self_attn"]}, [UP, EXPERT]),
        ({"quant_method": "gptq", "bits": 4, "lm_head": True}, [UP, QUERY, EXPERT, OUTPUT]),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*self_attn.*": {}}}, [UP, EXPERT]),
        (compressed(FP8_WEIGHTS, "lm_head"), [UP, QUERY, EXPERT]),
        (compressed(FP8_WEIGHTS, r"re:.*mlp\.(gate|up|down)_proj.*", "re:.*self_attn.*"), [EXPERT]),
        (compressed(FP8_WEIGHTS, "lm_head", targets=r"re:.*self_attn\.[qkvo]_proj"), [QUERY]),
        ({"quant_method": "mxfp4"}, [EXPERT]),
        (NVFP4_SECTION, [UP, EXPERT]),
        ({"quantization": {"quant_algo": "FP8", "exclude_modules": ["*mlp*"]}}, [QUERY, OUTPUT]),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, [UP, QUERY, EXPERT]),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["q_proj"]}, [UP, EXPERT]),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
                "exclude": ["lm_head", "re:.*q_proj"],
            },
            [UP, EXPERT],
        ),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {
                    UP.name: {"quant_algo": "NVFP4"},
                    QUERY.name: {"quant_algo": "FP8"},
                },
            },
            [UP, QUERY],
        ),
    ],
)
def test_what_a_section_takes(section: dict[str, object], names: list[Weight]) -> None:
    assert taken(section) == [weight.name for weight in names]


def test_names_are_read_as_wrappers_write_them() -> None:
    listed = ["language_model.model.layers.3.mlp.up_proj", "model.language_model.layers.3.self_attn.q_proj"]
    assert taken({"quant_method": "fp8", "modules_to_not_convert": listed}) == [EXPERT.name]


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"quant_method": "hqq"}, "quantized with hqq"),
        ({"quant_method": "gptq", "bits": 5}, "of 5 bits"),
        ({"quant_method": "awq", "bits": "four"}, "bits = 'four'"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "without config_groups"),
        (compressed(FP8_WEIGHTS, "re:.*mlp.("), "is no regular expression"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size = [128]"),
        (compressed({"num_bits": 3, "type": "float"}), "type float with 3 bits"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e5m2"}}}, "fp8_e5m2"),
    ],
)
def test_what_is_not_known_or_not_possible_is_refused(section: dict[str, object], named: str) -> None:
    with pytest.raises((UnsupportedModelError, ModelFileError)) as caught:
        parse_config({**SMOLLM2, "quantization_config": section}, name="m")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_section_leaves_open_is_said() -> None:
    section = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    shape = parse_config({**SMOLLM2, "quantization_config": section}, name="m")
    assert shape.caveat == ("its config.json lists no layers, so all linear ones are taken as FP8, a scale per output")


def test_a_mixture_without_its_list_is_taken_to_be_the_usual_one() -> None:
    section: dict[str, object] = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    quantization = read(section)
    assert [quantization.format_of(weight) for weight in (UP, QUERY, EXPERT, OUTPUT)] == [
        NVFP4,
        FP8_TENSOR,
        NVFP4,
        None,
    ]
    caveat = parse_config({**SMOLLM2, "quantization_config": section}, name="m").caveat
    assert caveat is not None
    assert "does not list which layers are in FP8" in caveat


def by_hand(linear_bytes: int, *, outputs_bytes: int = 0) -> int:
    """SmolLM2's 30 layers of so many bytes, their norms, and its one table."""
    return 30 * linear_bytes + outputs_bytes + 2 * (61 * 576 + 49152 * 576)


LINEAR = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536


@pytest.mark.parametrize(
    ("scheme", "num_bytes"),
    [
        ("fp8", by_hand(LINEAR)),
        ("w8a8-int8", by_hand(LINEAR + 4 * (576 + 2 * 192 + 576 + 2 * 1536 + 576))),
        ("nvfp4", by_hand(LINEAR // 2 + LINEAR // 16)),
        ("FP8_per_tensor", by_hand(LINEAR)),
        # inputs of 576 are five groups of at most 128, of 1,536 twelve; 16 bits of scale and 4 of zero point each
        ("awq_marlin", by_hand(LINEAR // 2 + (5 * (2 * 576 + 2 * 192 + 2 * 1536) + 12 * 576) * 20 // 8)),
        ("gguf-q8_0", 134_479_872 * 34 // 32 + 2 * 61 * 576),
    ],
)
def test_a_model_by_the_name_of_its_quantization(scheme: str, num_bytes: int) -> None:
    assert quantized(smollm2(), scheme).weights_bytes == num_bytes


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(QuestionError, match=r"'int3' is not known; known are awq, .*nvfp4"):
        quantized(smollm2(), "int3")
    assert named_quantization("AWQ_Marlin", model="m").method == "awq"


def stored(method: str) -> ModelShape:
    return parse_config({**SMOLLM2, "quantization_config": {"quant_method": method}}, name="m")


def test_a_packed_checkpoint_keeps_its_format() -> None:
    shape = stored("fp8")
    assert quantized(shape, "w8a8-fp8") == shape  # as large, so it is what the name meant
    with pytest.raises(QuestionError, match="already quantized with fp8, which is not awq"):
        quantized(shape, "awq")


def test_latent_attention_stays_as_it_is_in_nvfp4() -> None:
    shape = published("deepseek-ai/DeepSeek-V2-Lite")
    kept = quantized(shape, "nvfp4")
    assert kept.held is not None
    norms = (512 + 2 * 2048) * 2
    attention = 2048 * (16 * 192 + 576) + 512 * 16 * 256 + 16 * 128 * 2048
    first_mlp = 3 * 2048 * 10944
    assert kept.held.layers[0].total == attention * 2 + first_mlp // 2 + first_mlp // 16 + norms
