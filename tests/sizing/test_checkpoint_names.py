"""Checkpoints that name their tensors their own way: every rank's part is the one that the config tells."""

from collections.abc import Iterable

import pytest

from sizing.config_json import parse_config
from sizing.headers import Tensor
from sizing.weights import weights_per_rank
from tests.sizing.checkpoint_names import CHECKPOINTS
from tests.sizing.text_models import SMALL_MODELS

# of these Transformers has a class of its own, whose tensors are named as in the files
SAVED_AS_NAMED = (
    "Apertus",
    "BLOOM",
    "Falcon 7B",
    "Falcon 11B",
    "Falcon 40B",
    "Falcon RW",
    "GPT-2",
    "GPT-J",
    "HyperCLOVA X",
    "Ministral 3",
    "MiniCPM 3",
    "OPT",
    "OPT with a narrow embedding",
    "StableLM 2",
)


def headers(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> list[Tensor]:
    found = [Tensor(name, "BF16", shape, 0) for name, shape in shapes]
    return [Tensor(each.name, each.dtype, each.shape, 2 * each.num_elements) for each in found]


def compare(name: str, tensors: list[Tensor]) -> None:
    """Biases of fused matrices are taken to be divided wholly, which is less than a thousandth."""
    by_config = parse_config(SMALL_MODELS[name], name=name)
    by_headers = parse_config(SMALL_MODELS[name], name=name, tensors=tensors)
    assert by_headers.weights_bytes == pytest.approx(by_config.weights_bytes, rel=2e-4)
    for ranks in (1, 2, 4):
        for enable in (False, True):
            answers = [
                weights_per_rank(shape, tensor_parallel_size=ranks, enable_expert_parallel=enable, as_allocated=False)
                for shape in (by_headers, by_config)
            ]
            assert answers[0] == pytest.approx(answers[1], rel=1e-3), (ranks, enable)
    stages = [
        weights_per_rank(shape, tensor_parallel_size=2, pipeline_parallel_size=3, as_allocated=False)
        for shape in (by_headers, by_config)
    ]
    assert stages[0] == pytest.approx(stages[1], rel=1e-3)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_names_of_tensors(name: str) -> None:
    compare(name, headers(CHECKPOINTS[name].items()))


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SAVED_AS_NAMED)
def test_names_that_transformers_saves(name: str) -> None:
    import torch
    import transformers

    config = SMALL_MODELS[name]
    module_class = getattr(transformers, config["architectures"][0])
    made = transformers.AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"})
    with torch.device("meta"):
        module = module_class(made)
    module.tie_weights()
    compare(name, headers((key, tuple(tensor.shape)) for key, tensor in module.named_parameters()))
