"""Equality with what vLLM's LoRA manager allocates around its own models, which are built without memory."""

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sizing.adapter_families import FAMILIES, NO_ADAPTERS
from sizing.adapter_settings import Adapters
from sizing.adapters import adapter_bytes, punica_bytes
from sizing.architecture import ARCHITECTURES, WRAPPERS
from sizing.architecture import FAMILIES as DECODER_FAMILIES
from sizing.config_json import parse_config
from tests.sizing.test_decoders import MODELS, SMALL
from tests.sizing.test_layers_oracle import CHANGED, decoder
from tests.sizing.text_models import SMALL_MODELS as TEXT_MODELS
from tests.sizing.vllm_ranks import first_of, register

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PLAIN: dict[str, dict[str, object]] = {
    "GemmaForCausalLM": {"model_type": "gemma", "head_dim": 32},
    "GraniteForCausalLM": {"model_type": "granite"},
    "LlamaForCausalLM": {"model_type": "llama"},
    "MistralForCausalLM": {"model_type": "mistral"},
    "MixtralForCausalLM": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "Olmo2ForCausalLM": {"model_type": "olmo2"},
    "OlmoeForCausalLM": {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2},
    "Phi3ForCausalLM": {"model_type": "phi3", "pad_token_id": 0},
    "Qwen2ForCausalLM": {"model_type": "qwen2"},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "head_dim": 32},
    "Qwen3MoeForCausalLM": {
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
}
SMALL_MODELS = {**PLAIN, **MODELS}
PUBLISHED = (
    *("openai/gpt-oss-20b", "google/gemma-3-27b-it", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    *("deepseek-ai/DeepSeek-V2-Lite", "deepseek-ai/DeepSeek-R1", "MiniMaxAI/MiniMax-M2.5"),
    *("Qwen/Qwen3-Next-80B-A3B-Instruct", "Nemotron-H", "Granite 4", "Gemma 4 with layer embeddings"),
)
NOT_LOOKED_AT = {
    *("DeciLMForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM", "GlmMoeDsaForCausalLM"),
    *("FalconH1ForCausalLM", "JambaForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "OlmoHybridForCausalLM"),
    *("AfmoeForCausalLM", "ApertusForCausalLM", "ExaoneForCausalLM", "GraniteMoeSWAForCausalLM"),
    *("GraniteMoeSharedForCausalLM", "LagunaForCausalLM", "LongcatFlashForCausalLM", "MiniCPM3ForCausalLM"),
    *("MiniCPMForCausalLM", "Rnj1ForCausalLM", "WhisperForConditionalGeneration"),
}
# OPT-350M's projections beside the layers have adapters of their own, which are not counted
TEXT = [
    name
    for name, config in TEXT_MODELS.items()
    if config["architectures"][0] in FAMILIES and name != "OPT with a narrow embedding"
]
STACKS = (
    *("lora_a_stacked", "lora_b_stacked", "w13_lora_a_stacked", "w13_lora_b_stacked", "w2_lora_a_stacked"),
    *("w2_lora_b_stacked", "adapter_enabled", "sharded_to_full_mapping_gpu"),
)


def small(architecture: str, **changes: object) -> dict[str, object]:
    return {**SMALL, "architectures": [architecture], **SMALL_MODELS[architecture], **changes}


def cut(name: str) -> dict[str, object]:
    """A published decoder with eight layers, where each layer's kind is not spelt in a pattern of its own."""
    config = decoder(name)
    layers = config["num_hidden_layers"]
    if name in CHANGED:
        return config
    sliced = {key: value[:8] for key, value in config.items() if isinstance(value, list) and len(value) == layers}
    return {**config, **sliced, "num_hidden_layers": 8}


def allocated_bytes(
    config: Mapping[str, object], ranks: int, folder: Path, monkeypatch: pytest.MonkeyPatch, **lora: object
) -> int:
    """Every stacked tensor on the first of `ranks`, once."""
    import torch
    from transformers.models.olmo2.modeling_olmo2 import Olmo2Model
    from vllm.config import LoRAConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.layers import fused_moe
    from vllm.lora.layers.base import BaseLayerWithLoRA
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.model_executor.model_loader.utils import initialize_model

    def mixture(self: Any, base_layer: Any) -> None:
        """Without the check that the kernel takes adapters: a processor's does not."""
        BaseLayerWithLoRA.__init__(self)
        self.base_layer, self._shared_experts = base_layer, base_layer._shared_experts
        self.moe_config, self.device = base_layer.moe_config, "meta"
        parallel = self.moe_config.moe_parallel_config
        self.tp_size, self.tp_rank = parallel.tp_size, parallel.tp_rank
        self.enable_moe_shared_loras = False
        self._w13_slices = 2 if self.moe_config.is_act_and_mul else 1
        self.n_slices = self.local_num_experts * (self._w13_slices + 1)

    monkeypatch.setattr(fused_moe.FusedMoEWithLoRA, "__init__", mixture)
    monkeypatch.setattr(fused_moe.FusedMoEWithLoRA, "set_mapping", lambda self, wrapper: None)
    monkeypatch.setattr(Olmo2Model, "__init__", Olmo2Model.__init__)  # vLLM would leave its own there for good
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, max_model_len=2048
    )
    engine = arguments.create_engine_config()
    engine.lora_config = LoRAConfig(**lora)
    engine.lora_config.verify_with_model_config(engine.model_config)
    with first_of(ranks, engine, folder):
        model = initialize_model(engine)
        vocab = engine.model_config.get_vocab_size()
        LoRAModelManager(model, 64, 4096, vocab, engine.lora_config, torch.device("meta"), engine)
    found: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, BaseLayerWithLoRA):
            views = "w13_lora_a_stacked" in vars(module)  # a mixture's other two are slices of its own
            for name in STACKS[2:] if views else STACKS:
                held = vars(module).get(name)
                for tensor in held if isinstance(held, tuple | list) else (held,) if held is not None else ():
                    found[id(tensor)] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def compare(
    config: Mapping[str, object], adapters: Adapters, ranks: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = allocated_bytes(
        config,
        ranks,
        folder,
        monkeypatch,
        max_loras=adapters.max_loras,
        max_lora_rank=adapters.max_lora_rank,
        fully_sharded_loras=adapters.fully_sharded_loras,
        lora_dtype=adapters.lora_dtype or "auto",
        target_modules=list(adapters.lora_target_modules) or None,
        enable_mixed_moe_lora_format=adapters.enable_mixed_moe_lora_format,
        enable_moe_shared_loras=adapters.enable_moe_shared_loras,
    )
    model = parse_config(config, name="m")
    assert adapter_bytes(model, adapters, tensor_parallel_size=ranks, as_allocated=False) == theirs


@pytest.mark.parametrize("architecture", SMALL_MODELS)
def test_a_small_model_on_several_ranks(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(small(architecture), Adapters(3, 16), 2, tmp_path, monkeypatch)
    compare(small(architecture), Adapters(2, 8, fully_sharded_loras=True), 4, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", TEXT)
def test_a_text_family(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TEXT_MODELS[name]
    register(config["model_type"])
    compare(config, Adapters(3, 16), 2, tmp_path, monkeypatch)
    compare(config, Adapters(2, 8, fully_sharded_loras=True), 4, tmp_path, monkeypatch)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_family(name: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(cut(name), Adapters(4, 32), ranks, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "Qwen/Qwen3-Next-80B-A3B-Instruct", "Nemotron-H", "Granite 4"])
def test_a_published_family_fully_sharded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(cut(name), Adapters(4, 32, fully_sharded_loras=True), 2, tmp_path, monkeypatch)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [1, 8])
def test_tied_tables_and_more_ranks_than_key_value_heads(
    ranks: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("LlamaForCausalLM", tie_word_embeddings=tied, vocab_size=4100)
    compare(config, Adapters(1, 64), ranks, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "named", [("q_proj",), ("qkv_proj", "o_proj"), ("up_proj", "lm_head"), ("embed_tokens",), ("gate", "experts")]
)
def test_only_the_layers_that_are_named(
    named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = "Qwen3MoeForCausalLM" if "experts" in named else "MistralForCausalLM"
    compare(small(architecture), Adapters(2, 8, lora_target_modules=named), 2, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "adapters",
    [
        Adapters(2, 8, lora_dtype="float16"),
        Adapters(2, 8, enable_mixed_moe_lora_format=True),
        Adapters(2, 8, enable_moe_shared_loras=True),
    ],
)
def test_other_settings(adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(cut("openai/gpt-oss-20b"), adapters, 2, tmp_path, monkeypatch)
    config = small("LlamaForCausalLM", dtype="float32")
    compare(config, Adapters(1, 8, lora_dtype=adapters.lora_dtype), 1, tmp_path, monkeypatch)


@pytest.mark.parametrize(("loras", "seqs", "tokens"), [(1, 256, 8192), (5, 17, 2048)])
def test_what_tells_tokens_apart(loras: int, seqs: int, tokens: int) -> None:
    import torch
    from vllm.config import LoRAConfig
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU

    made = PunicaWrapperGPU.__new__(PunicaWrapperGPU)
    PunicaWrapperBase.__init__(made, tokens, seqs, "meta", lora_config=LoRAConfig(max_loras=loras))
    metas = [LoRAKernelMeta.make(loras, tokens, "meta") for _ in range(2)]
    held = [tensor for each in (made, *metas) for tensor in vars(each).values() if isinstance(tensor, torch.Tensor)]
    on_card = [tensor for tensor in held if tensor.device.type == "meta"]
    assert punica_bytes(Adapters(loras), max_num_seqs=seqs, max_num_batched_tokens=tokens) == sum(
        tensor.numel() * tensor.element_size() for tensor in on_card
    )


KNOWN = sorted({*ARCHITECTURES, *DECODER_FAMILIES, *WRAPPERS})


@pytest.mark.parametrize("architecture", KNOWN)
def test_the_tables_say_what_vllms_classes_say(architecture: str) -> None:
    """Read from their sources: some import what is not installed here."""
    from vllm.model_executor.models.registry import ModelRegistry

    registered = ModelRegistry.models.get(architecture)
    if registered is None:
        assert architecture in NO_ADAPTERS  # vLLM has no such class
        return
    said = Said()
    said.read(registered.module_name, registered.class_name)
    assert said.supported == (architecture not in NO_ADAPTERS)
    family = FAMILIES.get(architecture)
    if family is None:
        assert architecture in {*WRAPPERS, *NO_ADAPTERS, *NOT_LOOKED_AT}
        return
    assert family.fused_experts == said.flag("is_3d_moe_weight")
    if architecture not in WRAPPERS:  # whose decoders are classes of their own
        assert (family.embedding, family.output) == (said.lists("embed_tokens"), said.lists("lm_head"))


def _source(module: str) -> Path | None:
    """The file of one of vLLM's modules, found without importing it."""
    import vllm

    package, _, rest = module.partition(".")
    folder = Path(vllm.__path__[0]).joinpath(*rest.split("."))
    files = (folder.with_suffix(".py"), folder / "__init__.py") if package == "vllm" and rest else ()
    return next((file for file in files if file.is_file()), None)


class Said:
    """What a class and those it is derived from say, the nearest first."""

    def __init__(self) -> None:
        self.supported = False
        self._values: dict[str, ast.expr] = {}

    def read(self, module: str, name: str) -> None:
        file = _source(module)
        if file is None:
            return
        tree = ast.parse(file.read_text())
        found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
        if found is None:
            self._follow(tree, module, name)
            return
        for node in found.body:
            for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
                value = getattr(node, "value", None)
                if isinstance(target, ast.Name) and value is not None:
                    self._values.setdefault(target.id, value)
        for base in (base.id for base in found.bases if isinstance(base, ast.Name)):
            if base == "SupportsLoRA":
                self.supported = True
            else:
                self.read(module, base)

    def _follow(self, tree: ast.Module, module: str, name: str) -> None:
        """Where it is imported from; of several platforms' NVIDIA's."""
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        named = [(node, alias) for node in imports for alias in node.names if (alias.asname or alias.name) == name]
        named.sort(key=lambda each: "nvidia" not in (each[0].module or ""))
        for node, alias in named[:1]:
            steps = module.split(".")
            inside = _source(module)
            up = node.level - (1 if inside is not None and inside.name == "__init__.py" else 0)
            package = ".".join(steps[: len(steps) - up]) if node.level else ""
            self.read(".".join(filter(None, [package, node.module])), alias.name)

    def flag(self, name: str) -> bool:
        value = self._values.get(name)
        return isinstance(value, ast.Constant) and bool(value.value)

    def lists(self, module: str) -> bool:
        value = self._values.get("embedding_modules")
        keys = value.keys if isinstance(value, ast.Dict) else []
        return module in [key.value for key in keys if isinstance(key, ast.Constant)]
