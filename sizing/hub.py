"""Reads a model's metadata, never its weights, from a local folder or the Hugging Face Hub."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_session, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from sizing.config_json import parse_config
from sizing.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from sizing.gguf_files import GGUF, gguf_files, gguf_shape, only_gguf, read_gguf_header
from sizing.gguf_header import parse_gguf
from sizing.headers import LENGTH_PREFIX_BYTES, MAX_HEADER_BYTES, Tensor, parse_header
from sizing.model import ModelShape

_CONFIG = "config.json"
_MODELOPT_CONFIG = "hf_quant_config.json"  # ModelOpt before 0.31 kept its quantization config beside the model's
_INDEX = "model.safetensors.index.json"
_OTHER_FORMATS = (".bin", ".pt", ".pth")
_TIMEOUT_S = 10.0
_PARALLEL_READS = 8
_PAST_THE_END = 416  # HTTP: a range that begins behind the last byte
_GGUF_PIECE_BYTES = 4 << 20  # most headers, vocabulary and all, take one or two


def load_model(
    ref: str, *, revision: str | None = None, endpoint: str | None = None, cache_dir: Path | None = None
) -> ModelShape:
    """The shape of a model given as a local folder, a .gguf file or a Hub id.

    From the Hub only `config.json` and the headers of safetensors or GGUF files travel, by ranged reads. One GGUF file
    among several is named as vLLM does: `owner/repository:Q4_K_M` or `owner/repository/file.gguf`. Where the Hub
    cannot be reached, a snapshot that is already in its cache is read instead. `endpoint` and `cache_dir` default to
    huggingface_hub's own.

    Raises:
        ModelNotFoundError: no such folder or repository, gated, or out of reach.
        ModelFileError: a file is missing, broken or impossible.
        UnsupportedModelError: a model family or a weights format that is not sized yet.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return _from_folder(path, ref)
    if path.is_file() and path.suffix == GGUF:
        return _from_gguf(path.parent, path.name, ref)
    if path.is_file():
        raise UnsupportedModelError(f"{ref} is a file; give the folder with its config.json and *.safetensors")
    repo, gguf = _repository(ref)
    if ref.startswith(("/", "./", "../", "~")) or repo.count("/") > 1:
        raise ModelNotFoundError(f"no folder {ref}; give a model folder, or a Hub id such as Qwen/Qwen3-8B")
    source = _Hub(repo, revision, endpoint)
    try:
        return source.model(gguf)
    except _UnreachableError as error:
        folder = _cached_snapshot(repo, revision, cache_dir)
        if folder is None:
            raise ModelNotFoundError(
                f"{ref}: the Hub cannot be reached ({error}) and the model is not in its cache; "
                "check the connection, or give a local folder"
            ) from error
        return _from_folder(folder, ref) if gguf is None else _from_gguf(folder, gguf, ref)


def _repository(ref: str) -> tuple[str, str | None]:
    """A Hub id, and the GGUF file or type that is named behind it."""
    if ref.endswith(GGUF) and ref.count("/") > 1:
        owner, repository, file = ref.split("/", 2)
        return f"{owner}/{repository}", file
    repo, _, gguf = ref.partition(":")
    return repo, gguf or None


def _from_folder(folder: Path, name: str) -> ModelShape:
    files = sorted(entry.name for entry in folder.iterdir())
    if only_gguf(files):
        return _from_gguf(folder, None, name)
    config = _folder_json(folder / _CONFIG)
    if config is None:
        raise ModelFileError(f"{name}: the folder has no {_CONFIG}; give the folder that the model was saved to")
    index = _folder_json(folder / _INDEX)
    shards = _weight_files(name, files, index)
    tensors = [tensor for shard in shards for tensor in _folder_header(folder / shard)] if shards else None
    return parse_config(_with_modelopt(config, _folder_json(folder / _MODELOPT_CONFIG)), name=name, tensors=tensors)


def _from_gguf(folder: Path, wanted: str | None, name: str) -> ModelShape:
    files = gguf_files(name, [entry.name for entry in folder.iterdir()], wanted)
    headers = [read_gguf_header(folder / file) for file in files]
    return gguf_shape(headers, _folder_json(folder / _CONFIG), name)


def _folder_json(file: Path) -> dict[str, object] | None:
    try:
        return _json_object(file.read_bytes(), str(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def _folder_header(file: Path) -> tuple[Tensor, ...]:
    try:
        with file.open("rb") as stream:
            prefix = stream.read(LENGTH_PREFIX_BYTES)
            length = int.from_bytes(prefix, "little")
            header = stream.read(length) if length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    if len(prefix) < LENGTH_PREFIX_BYTES or len(header) < length:
        raise ModelFileError(f"{file}: its safetensors header is truncated; download the file again")
    return parse_header(header, file=str(file))


def _weight_files(name: str, files: Sequence[str], index: Mapping[str, object] | None) -> list[str]:
    """The safetensors files vLLM loads, as its default loader picks them; empty where there are no weights at all.

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
        if others:
            raise UnsupportedModelError(
                f"{name}: its weights are only there as {' and '.join(others)}, which is not sized yet; "
                "use a version with safetensors"
            )
    # Mistral's own format repeats the same weights; without an index, the one in Transformers' names is taken.
    return [file for file in safetensors if not file.startswith("consolidated")] or safetensors


def _with_modelopt(config: dict[str, object], modelopt: dict[str, object] | None) -> dict[str, object]:
    """What the config's own section says comes first; the other file's lists of layers are only there."""
    if modelopt is None:
        return config
    section = config.get("quantization_config")
    return {**config, "quantization_config": {**modelopt, **section} if isinstance(section, dict) else modelopt}


def _json_object(content: bytes, file: str) -> dict[str, object]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ModelFileError(f"{file}: is not JSON ({error}); download the file again") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{file}: is not a JSON object; download the file again")
    return value


class _UnreachableError(Exception):
    """No answer from the Hub; whether that is an error depends on its cache."""


@dataclass(frozen=True)
class _Hub:
    """One repository on the Hub, at one revision."""

    repo: str
    revision: str | None
    endpoint: str | None

    def model(self, gguf: str | None = None) -> ModelShape:
        with _hub_errors(self.repo, self.revision):
            files = self._files()
            if gguf is not None or only_gguf(files):
                return self._gguf_model(files, gguf)
            config = self._json(_CONFIG) if _CONFIG in files else None
            if config is None:
                raise ModelFileError(f"{self.repo}: the repository has no {_CONFIG}; name one that serves as it is")
            modelopt = self._json(_MODELOPT_CONFIG) if _MODELOPT_CONFIG in files else None
            shards = _weight_files(self.repo, files, self._json(_INDEX) if _INDEX in files else None)
            if not shards:
                raise UnsupportedModelError(f"{self.repo}: the repository holds no weights; name one that does")
            tensors = self._tensors(shards)
        return parse_config(_with_modelopt(config, modelopt), name=self.repo, tensors=tensors)

    def _gguf_model(self, files: Iterable[str], wanted: str | None) -> ModelShape:
        config = self._json(_CONFIG) if _CONFIG in files else None
        headers = [
            parse_gguf(self._fetch(file), file=f"{self.repo}/{file}", piece_bytes=_GGUF_PIECE_BYTES)
            for file in gguf_files(self.repo, files, wanted)
        ]
        return gguf_shape(headers, config, self.repo)

    def _fetch(self, file: str) -> Callable[[int, int], bytes]:
        url = hf_hub_url(self.repo, file, revision=self.revision, endpoint=self.endpoint)

        def fetch(offset: int, size: int) -> bytes:
            headers = {**build_hf_headers(), "Range": f"bytes={offset}-{offset + size - 1}"}
            response = get_session().get(url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True)
            if response.status_code == _PAST_THE_END:
                return b""
            hf_raise_for_status(response)
            content: bytes = response.content
            return content

        return fetch

    def _files(self) -> list[str]:
        info = HfApi(endpoint=self.endpoint).model_info(self.repo, revision=self.revision, timeout=_TIMEOUT_S)
        return sorted(str(sibling.rfilename) for sibling in info.siblings or ())

    def _json(self, file: str) -> dict[str, object]:
        url = hf_hub_url(self.repo, file, revision=self.revision, endpoint=self.endpoint)
        response = get_session().get(url, headers=build_hf_headers(), timeout=_TIMEOUT_S, follow_redirects=True)
        hf_raise_for_status(response)
        return _json_object(response.content, f"{self.repo}/{file}")

    def _tensors(self, shards: Iterable[str]) -> list[Tensor]:
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            return [tensor for header in pool.map(self._header, shards) for tensor in header]

    def _header(self, shard: str) -> list[Tensor]:
        metadata = HfApi(endpoint=self.endpoint).parse_safetensors_file_metadata(
            self.repo, shard, revision=self.revision, timeout=_TIMEOUT_S
        )
        return [
            Tensor(name, info.dtype, tuple(info.shape), info.data_offsets[1] - info.data_offsets[0])
            for name, info in metadata.tensors.items()
        ]


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Map the Hub client's errors to ours, in one place."""
    try:
        yield
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{repo!r} is neither a folder nor a Hub id; a Hub id looks like Qwen/Qwen3-8B"
        ) from error
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo}: the repository is gated; accept its terms on its page, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repo}: there is no revision {revision!r}; leave it out for the newest") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo}: no such folder and no such repository on the Hub, or a private one; "
            "check the spelling, or run `hf auth login`"
        ) from error
    except SafetensorsParsingError as error:
        raise ModelFileError(f"{repo}: a safetensors header is not readable; try another revision") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise _UnreachableError(f"it answers {status}") from error
    except (HTTPError, OSError) as error:  # refused, unresolved, timed out, or told to stay offline
        raise _UnreachableError(type(error).__name__) from error


def _cached_snapshot(repo: str, revision: str | None, cache_dir: Path | None) -> Path | None:
    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
