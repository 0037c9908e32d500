"""What the header of a GGUF file says: its metadata and its tensors, never their data.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sizing.errors import ModelFileError, UnsupportedModelError
from sizing.ggml import TYPES
from sizing.headers import Tensor

MAX_HEADER_BYTES = 200_000_000  # the largest published vocabularies take a tenth of it
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_COUNT = 1_000_000
_MAX_DIMENSIONS = 4
_MAX_LISTED = 1024  # longer arrays are vocabularies, of which only the length is told

Value = bool | int | float | str
# the format's numbers for the types of values, and how struct spells them
_SCALARS: Mapping[int, str] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata; `values` are only kept of short ones."""

    length: int
    values: tuple[Value, ...]


@dataclass(frozen=True)
class GgufHeader:
    """Tensors carry llama.cpp's names and types; their shapes are as PyTorch gives them, outputs first."""

    metadata: Mapping[str, Value | GgufArray]
    tensors: tuple[Tensor, ...]


class _TruncatedError(Exception):
    """The file ends inside its header."""


@dataclass
class _Cursor:
    """Reads on from where it is; fetches in large pieces, since each may be a request."""

    fetch: Callable[[int, int], bytes]
    """Bytes from an offset, as many as asked for or as there are."""
    piece_bytes: int
    buffer: bytes = b""
    start: int = 0
    position: int = 0

    def take(self, size: int) -> bytes:
        if self.position + size > MAX_HEADER_BYTES:
            raise _TruncatedError
        end = self.position + size
        while end > self.start + len(self.buffer):
            more = self.fetch(self.start + len(self.buffer), max(self.piece_bytes, end - self.start - len(self.buffer)))
            if not more:
                raise _TruncatedError
            self.buffer = self.buffer[self.position - self.start :] + more
            self.start = self.position
        found = self.buffer[self.position - self.start : end - self.start]
        self.position = end
        return found

    def number(self, spelling: str) -> Value:
        value: Value = struct.unpack(spelling, self.take(struct.calcsize(spelling)))[0]
        return value

    def count(self, limit: int) -> int:
        value = int(self.number("<Q"))
        if value > limit:
            raise ValueError(f"{value:,} where at most {limit:,} can be")
        return value

    def text(self) -> str:
        return self.take(self.count(MAX_HEADER_BYTES)).decode()

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text()
        return self.number(_SCALARS[kind])

    def array(self) -> GgufArray:
        kind, length = int(self.number("<I")), self.count(MAX_HEADER_BYTES)
        if length <= _MAX_LISTED:
            return GgufArray(length, tuple(self.value(kind) for _ in range(length)))
        if kind == _STRING:
            for _ in range(length):
                self.take(self.count(MAX_HEADER_BYTES))
        else:
            self.take(length * struct.calcsize(_SCALARS[kind]))
        return GgufArray(length, ())


def parse_gguf(fetch: Callable[[int, int], bytes], *, file: str, piece_bytes: int = 1 << 20) -> GgufHeader:
    """The header that `fetch(offset, length)` gives the bytes of.

    Raises:
        ModelFileError: not a GGUF file, truncated, or impossible.
        UnsupportedModelError: a version or a tensor type that is not known here.
    """
    cursor = _Cursor(fetch, piece_bytes)
    try:
        if cursor.take(4) != _MAGIC:
            raise ModelFileError(f"{file}: is not a GGUF file; download it again, or give the model's folder")
        version = int(cursor.number("<I"))
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"{file}: is GGUF version {version}; sized are versions 2 and 3: convert it again with a new llama.cpp"
            )
        num_tensors, num_values = cursor.count(_MAX_COUNT), cursor.count(_MAX_COUNT)
        metadata: dict[str, Value | GgufArray] = {}
        for _ in range(num_values):
            key, kind = cursor.text(), int(cursor.number("<I"))
            metadata[key] = cursor.array() if kind == _ARRAY else cursor.value(kind)
        return GgufHeader(metadata, tuple(_tensor(cursor, file) for _ in range(num_tensors)))
    except _TruncatedError as error:
        raise ModelFileError(f"{file}: its GGUF header is truncated; download the file again") from error
    except (ValueError, KeyError, struct.error) as error:
        raise ModelFileError(f"{file}: its GGUF header is not readable ({error}); download the file again") from error


def _tensor(cursor: _Cursor, file: str) -> Tensor:
    name, dimensions = cursor.text(), int(cursor.number("<I"))
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"{name} of {dimensions} dimensions")
    extents = tuple(int(cursor.number("<Q")) for _ in range(dimensions))
    kind = int(cursor.number("<I"))
    cursor.number("<Q")  # where its data is
    ggml = TYPES.get(kind)
    if ggml is None:
        raise UnsupportedModelError(f"{file}: {name} is of ggml type {kind}, which is not known; use another file")
    if any(extent > MAX_HEADER_BYTES for extent in extents):
        raise ValueError(f"{name} of {extents}")
    shape = tuple(reversed(extents))
    tensor = Tensor(name, ggml.name, shape, 0)
    return Tensor(name, ggml.name, shape, ggml.num_bytes(tensor.num_elements))
