"""Reads a model's metadata, never its weights, from a local folder or the Hugging Face Hub."""

from pathlib import Path

from sizing.errors import ModelNotFoundError, UnsupportedModelError
from sizing.gguf_files import GGUF
from sizing.heads import HeadMethod
from sizing.model import ModelShape
from sizing.model_files import from_folder, from_gguf


def load_model(
    ref: str,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    head: HeadMethod | None = None,
) -> ModelShape:
    """The shape of a model given as a local folder, a .gguf file or a Hub id; or of the EAGLE head that is there.

    From the Hub only `config.json` and the headers of safetensors or GGUF files travel, by ranged reads. One GGUF file
    among several is named as vLLM does: `owner/repository:Q4_K_M` or `owner/repository/file.gguf`. Where the Hub
    cannot be reached, a snapshot that is already in its cache is read instead. `endpoint` and `cache_dir` default to
    huggingface_hub's own.

    Raises:
        ModelNotFoundError: no such folder or repository, gated, or out of reach.
        ModelFileError: a file is missing, broken or impossible.
        UnsupportedModelError: a model family or a weights format that is not sized yet.
    """
    path = _local(ref)
    if path is not None and path.is_dir():
        return from_folder(path, ref, head)
    if path is not None and path.suffix == GGUF:
        return from_gguf(path.parent, path.name, ref)
    if path is not None:
        raise UnsupportedModelError(f"{ref} is a file; give the folder with its config.json and *.safetensors")
    repo, gguf = _repository(ref)
    if ref.startswith(("/", "./", "../", "~")) or repo.count("/") > 1:
        raise ModelNotFoundError(f"no folder {ref}; give a model folder, or a Hub id such as Qwen/Qwen3-8B")
    # the Hub's client takes longer to import than a folder takes to answer
    from sizing.repository import Repository, UnreachableError, cached_snapshot

    source = Repository(repo, revision, endpoint)
    try:
        return source.model(gguf, head)
    except UnreachableError as error:
        folder = cached_snapshot(repo, revision, cache_dir)
        if folder is None:
            raise ModelNotFoundError(
                f"{ref}: the Hub cannot be reached ({error}) and the model is not in its cache; "
                "check the connection, or give a local folder"
            ) from error
        return from_folder(folder, ref, head) if gguf is None else from_gguf(folder, gguf, ref)


def _local(ref: str) -> Path | None:
    """The file or folder of that name; None where there is none.

    Raises ModelNotFoundError where the name can be neither one nor a Hub id.
    """
    if not ref.strip() or "://" in ref:
        raise ModelNotFoundError(f"{ref!r} is neither a folder nor a Hub id; a Hub id looks like Qwen/Qwen3-8B")
    try:
        path = Path(ref).expanduser()
        return path if path.is_dir() or path.is_file() else None
    except (OSError, RuntimeError) as error:  # a name too long, or the home of a user who is not there
        raise ModelNotFoundError(
            f"{ref[:80]!r} is neither a folder nor a Hub id ({error}); a Hub id looks like Qwen/Qwen3-8B"
        ) from error


def _repository(ref: str) -> tuple[str, str | None]:
    """A Hub id, and the GGUF file or type that is named behind it."""
    if ref.endswith(GGUF) and ref.count("/") > 1:
        owner, repository, file = ref.split("/", 2)
        return f"{owner}/{repository}", file
    repo, _, gguf = ref.partition(":")
    return repo, gguf or None
