"""A model's metadata on the Hugging Face Hub, by ranged reads. Imported only where a Hub id is asked for."""

from collections.abc import Callable, Iterable, Iterator
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

from sizing.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from sizing.gguf_files import gguf_files, gguf_shape, only_gguf
from sizing.gguf_header import parse_gguf
from sizing.headers import Tensor
from sizing.heads import HeadMethod
from sizing.model import ModelShape
from sizing.model_files import CONFIG, INDEX, MODELOPT_CONFIG, json_object, parsed, weight_files, with_modelopt

_TIMEOUT_S = 10.0
_PARALLEL_READS = 8
_PAST_THE_END = 416  # HTTP: a range that begins behind the last byte
_GGUF_PIECE_BYTES = 4 << 20  # most headers, vocabulary and all, take one or two


class UnreachableError(Exception):
    """No answer from the Hub; whether that is an error depends on its cache."""


@dataclass(frozen=True)
class Repository:
    """One repository on the Hub, at one revision."""

    repo: str
    revision: str | None
    endpoint: str | None

    def model(self, gguf: str | None = None, head: HeadMethod | None = None) -> ModelShape:
        """The shape of its model, of the named GGUF file where one is, or of the EAGLE head it holds.

        Raises:
            UnreachableError: no answer from the Hub.
            SizingError: as sizing.hub.load_model.
        """
        with _hub_errors(self.repo, self.revision):
            files = self._files()
            if gguf is not None or only_gguf(files):
                return self._gguf_model(files, gguf)
            config = self._json(CONFIG) if CONFIG in files else None
            if config is None:
                raise ModelFileError(f"{self.repo}: the repository has no {CONFIG}; name one that serves as it is")
            modelopt = self._json(MODELOPT_CONFIG) if MODELOPT_CONFIG in files else None
            index = self._json(INDEX) if INDEX in files else None
            shards = weight_files(self.repo, files, index, config_will_do=head is not None)
            if not shards and head is None:
                raise UnsupportedModelError(f"{self.repo}: the repository holds no weights; name one that does")
            tensors = self._tensors(shards) if shards else None
        return parsed(with_modelopt(config, modelopt), self.repo, tensors, head)

    def _gguf_model(self, files: Iterable[str], wanted: str | None) -> ModelShape:
        config = self._json(CONFIG) if CONFIG in files else None
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
        return json_object(response.content, f"{self.repo}/{file}")

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
        raise UnreachableError(f"it answers {status}") from error
    except (HTTPError, OSError) as error:  # refused, unresolved, timed out, or told to stay offline
        raise UnreachableError(type(error).__name__) from error


def cached_snapshot(repo: str, revision: str | None, cache_dir: Path | None) -> Path | None:
    """The folder of a snapshot that is in the Hub's cache already."""
    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
