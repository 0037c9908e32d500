"""GGUF files in a folder or a repository: which of them make up a model, and the shape they give."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sizing.config_json import parse_config
from sizing.errors import ModelFileError
from sizing.gguf_header import GgufHeader, parse_gguf
from sizing.gguf_model import gguf_config, gguf_tensors
from sizing.model import ModelShape

GGUF = ".gguf"


def only_gguf(files: Sequence[str]) -> bool:
    """Whether GGUF is the only format of weights among them that is read here."""
    return any(file.endswith(GGUF) for file in files) and not any(file.endswith(".safetensors") for file in files)


def read_gguf_header(file: Path) -> GgufHeader:
    """Raises ModelFileError: it cannot be read, or is not such a file."""
    try:
        with file.open("rb") as stream:

            def fetch(offset: int, size: int) -> bytes:
                stream.seek(offset)
                return stream.read(size)

            return parse_gguf(fetch, file=str(file))
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def gguf_shape(headers: Sequence[GgufHeader], config: Mapping[str, object] | None, name: str) -> ModelShape:
    """The model of these files, by the config beside them or by the metadata of the first."""
    values = gguf_config(headers[0], config, name=name)
    return parse_config(values, name=name, tensors=gguf_tensors(headers, name=name))


def gguf_files(name: str, files: Iterable[str], wanted: str | None) -> list[str]:
    """The parts of one model: the file or the type that is named, or the only one there is.

    Raises:
        ModelFileError: none of that name, several to choose from, or a part that is missing.
    """
    types = file_types(files)
    known = f"{', '.join(types) or 'no GGUF file'}; name one, as REPOSITORY:TYPE or by its file"
    if wanted is None:
        found = list(types.values())
        if len(found) != 1:
            raise ModelFileError(f"{name}: holds {known}")
        parts = found[0]
    else:
        parts = types.get(wanted.upper()) or next((group for group in types.values() if wanted in group), [])
        if not parts:
            raise ModelFileError(f"{name}: there is no {wanted} in it, but {known}")
    _, split, total = parts[0].removesuffix(GGUF).partition("-of-")
    if split and total.isdigit() and int(total) != len(parts):
        raise ModelFileError(
            f"{name}: {int(total) - len(parts)} of {int(total)} GGUF parts are missing; download the model again"
        )
    return parts


def file_types(files: Iterable[str]) -> dict[str, list[str]]:
    """The GGUF files of a repository by the type in their names, the parts of a split one together."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        if not file.endswith(".gguf") or "mmproj" in file:  # an encoder's file stands beside the decoder's
            continue
        stem = file.removesuffix(".gguf").rpartition("/")[2]
        head, part, _ = stem.partition("-of-")
        stem = head.rpartition("-")[0] if part else stem
        pieces = stem.replace(".", "-").split("-")
        found.setdefault(pieces[-1].upper() if len(pieces) > 1 else stem, []).append(file)
    return found
