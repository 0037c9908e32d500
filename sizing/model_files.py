"""A model's metadata in a folder: its `config.json`, and the headers of the weight files that vLLM would load."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sizing.config_json import parse_config
from sizing.errors import ModelFileError, UnsupportedModelError
from sizing.gguf_files import gguf_files, gguf_shape, only_gguf, read_gguf_header
from sizing.headers import LENGTH_PREFIX_BYTES, MAX_HEADER_BYTES, Tensor, parse_header
from sizing.heads import HeadMethod, parse_head
from sizing.model import ModelShape

CONFIG = "config.json"
MODELOPT_CONFIG = "hf_quant_config.json"  # ModelOpt before 0.31 kept its quantization config beside the model's
INDEX = "model.safetensors.index.json"
_OTHER_FORMATS = (".bin", ".pt", ".pth")


def from_folder(folder: Path, name: str, head: HeadMethod | None = None) -> ModelShape:
    """The shape of the model, or of the EAGLE head, that was saved to that folder.

    Raises:
        ModelFileError: a file is missing, broken or impossible.
        UnsupportedModelError: a model family or a weights format that is not sized yet.
    """
    files = _listed(folder)
    if only_gguf(files) and head is None:
        return from_gguf(folder, None, name)
    config = _folder_json(folder / CONFIG)
    if config is None:
        raise ModelFileError(f"{name}: the folder has no {CONFIG}; give the folder that the model was saved to")
    index = _folder_json(folder / INDEX)
    shards = weight_files(name, files, index, config_will_do=head is not None)
    tensors = [tensor for shard in shards for tensor in _folder_header(folder / shard)] if shards else None
    return parsed(with_modelopt(config, _folder_json(folder / MODELOPT_CONFIG)), name, tensors, head)


def parsed(
    config: Mapping[str, object], name: str, tensors: Sequence[Tensor] | None, head: HeadMethod | None
) -> ModelShape:
    """A model's shape, or a head's where one is meant. Raises as parse_config."""
    if head is not None:
        return parse_head(config, name=name, method=head, tensors=tensors)
    return parse_config(config, name=name, tensors=tensors)


def from_gguf(folder: Path, wanted: str | None, name: str) -> ModelShape:
    """The shape that a folder's GGUF file describes, the one named where there are several. Raises as from_folder."""
    files = gguf_files(name, _listed(folder), wanted)
    headers = [read_gguf_header(folder / file) for file in files]
    return gguf_shape(headers, _folder_json(folder / CONFIG), name)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    closed = isinstance(error, PermissionError)
    way_out = "check its permissions" if closed else "give the folder that the model was saved to"
    return ModelFileError(f"{path}: cannot be read ({error.strerror}); {way_out}")


def _folder_json(file: Path) -> dict[str, object] | None:
    try:
        return json_object(file.read_bytes(), str(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(file, error) from error


def _folder_header(file: Path) -> tuple[Tensor, ...]:
    try:
        with file.open("rb") as stream:
            prefix = stream.read(LENGTH_PREFIX_BYTES)
            length = int.from_bytes(prefix, "little")
            header = stream.read(length) if length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(prefix) < LENGTH_PREFIX_BYTES or len(header) < length:
        raise ModelFileError(f"{file}: its safetensors header is truncated; download the file again")
    return parse_header(header, file=str(file))


def weight_files(
    name: str, files: Sequence[str], index: Mapping[str, object] | None, *, config_will_do: bool = False
) -> list[str]:
    """The safetensors files vLLM loads, as its default loader picks them; empty where there are no weights at all.

    `config_will_do`: nor where they are only there in a format whose headers are not read.

    Raises:
        ModelFileError: a shard the index names is not there.
        UnsupportedModelError: the weights are there, but in another format.
    """
    safetensors = [file for file in files if file.endswith(".safetensors")]
    weight_map = (index or {}).get("weight_map")
    if isinstance(weight_map, dict) and safetensors:
        shards = sorted({str(file) for file in weight_map.values()})
        missing = sorted(set(shards) - set(safetensors))
        if missing:
            raise ModelFileError(
                f"{name}: {len(missing)} of {len(shards)} safetensors shards are missing ({missing[0]}, ...); "
                "download the model again"
            )
        return shards
    if not safetensors:
        others = sorted({Path(file).suffix for file in files} & set(_OTHER_FORMATS))
        if others and not config_will_do:
            raise UnsupportedModelError(
                f"{name}: its weights are only there as {' and '.join(others)}, which is not sized yet; "
                "use a version with safetensors"
            )
    # Mistral's own format repeats the same weights; without an index, the one in Transformers' names is taken.
    return [file for file in safetensors if not file.startswith("consolidated")] or safetensors


def with_modelopt(config: dict[str, object], modelopt: dict[str, object] | None) -> dict[str, object]:
    """What the config's own section says comes first; the other file's lists of layers are only there."""
    if modelopt is None:
        return config
    section = config.get("quantization_config")
    return {**config, "quantization_config": {**modelopt, **section} if isinstance(section, dict) else modelopt}


def json_object(content: bytes, file: str) -> dict[str, object]:
    """Raises ModelFileError where that is no JSON object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file}: is not JSON ({error}); download the file again") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{file}: is not a JSON object; download the file again")
    return value
