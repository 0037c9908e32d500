"""What start-ups measured beside what was predicted, and how that moves and narrows the next prediction."""

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Literal, get_args

from sizing.errors import CalibrationError, UnknownGpuError
from sizing.gpu import GIB, gpu

SCHEMA_VERSION = 1
PREDICTOR = 2
"""To be raised with every change to the sum: how far another sum was off says nothing of this one."""
CalibratedTerm = Literal["weights", "activations", "non-torch", "CUDA graphs", "KV cache"]
TERMS: tuple[CalibratedTerm, ...] = get_args(CalibratedTerm)

_RATIO_REACH: Mapping[CalibratedTerm, float] = {"weights": 0.02, "activations": 0.5, "CUDA graphs": 0.7}
"""Terms whose error grows with the term: a tensor padded or kept twice, the bytes a kernel holds per token or per
capture size. Corrected by a ratio; here the logarithm of how far a single start may be believed where the prediction
came without a band of its own."""
_OFFSET_REACH: Mapping[CalibratedTerm, float] = {"non-torch": 0.25 * GIB, "KV cache": 0.5 * GIB}
"""Terms whose error does not: CUDA's context and NCCL's buffers are what they are beside any prediction, and what is
left for the KV cache misses by the sum of what is taken. Corrected by adding bytes; in bytes, the same."""
_SHOWN_BYTES = 0.005 * GIB
"""vLLM prints two decimals: a difference that a line cannot show is none."""
_FEW = 3
"""Fewer starts than this, of other models, may be the odd ones: they never move a value out of the band it had."""
_HELD, _WIDENED = 0.8, 1.28
"""Of five starts or more a band rests on four in five, so that the oddest do not count, and is widened to what would
hold nine in ten were the errors normal, which is what bands of the sum stand for."""


@dataclass(frozen=True)
class Observation:
    """One term of one start: bytes per rank, as predicted without any calibration, and as measured."""

    term: CalibratedTerm
    gpu: str
    """The catalogue's name where it has one; "cpu" for a processor."""
    link: str
    """As `observing.link_of` gives it."""
    tensor_parallel_size: int
    release: str
    """vLLM's version; "" where not known."""
    predicted_bytes: int
    measured_bytes: int
    model: str
    as_of: date
    settings: str = ""
    """What else the start was asked, in words: the same start again replaces this one."""
    predictor: int = PREDICTOR
    """Which sum it was predicted by."""

    @property
    def start(self) -> tuple[str, ...]:
        """What makes two observations the same one made again."""
        return (self.term, self.model, self.gpu, str(self.tensor_parallel_size), self.release, self.settings)


@dataclass(frozen=True)
class _Near:
    """The observations that bear on a question, and how many of them the uncalibrated answer is worth."""

    term: CalibratedTerm
    entries: tuple[Observation, ...]
    prior: float
    same_model: bool


@dataclass(frozen=True)
class Calibration:
    """The starts of the engines that were looked at; empty, it changes nothing."""

    entries: tuple[Observation, ...] = ()

    def merged(self, fresh: Sequence[Observation]) -> "Calibration":
        """With `fresh` in it; what was observed of the same start before is replaced."""
        newest = {entry.start: entry for entry in chain(self.entries, fresh)}
        return Calibration(tuple(sorted(newest.values(), key=lambda entry: (entry.gpu, entry.model, entry.start))))

    def count(
        self, term: str, *, gpu: str, link: str, tensor_parallel_size: int, release: object, model: str = ""
    ) -> int:
        """How many starts `corrected` would draw on."""
        near = self._nearest(term, gpu, link, tensor_parallel_size, str(release), model)
        return len(near.entries) if near else 0

    def corrected(
        self,
        term: str,
        *,
        predicted_bytes: int,
        low_bytes: int,
        high_bytes: int,
        gpu: str,
        link: str,
        tensor_parallel_size: int,
        release: object,
        model: str = "",
    ) -> tuple[int, int, int]:
        """The term and its band, as the nearest starts move them; unchanged where none is near.

        `gpu` is the card's name in any spelling, or "cpu"; `release` anything that writes itself as a version.

        Nearest are those of the same `model` (for weights on any card, else on this card and minor version), then any
        on this card, parallel size and minor version, then on this card, then on this link; one rank never speaks for
        several, nor several for one. The median of their errors (a ratio or bytes, by the term) is believed by
        n / (n + prior), where the prior grows with the distance; so is their spread, which then stands in for the
        band. The band always holds what the median start measured and is never narrower than a log line can show.
        """
        near = self._nearest(term, gpu, link, tensor_parallel_size, str(release), model)
        if near is None or (near.term in _RATIO_REACH and predicted_bytes <= 0):
            return predicted_bytes, low_bytes, high_bytes  # a term predicted as none (no graphs when eager) stays none
        scale = _Scale(near.term, predicted_bytes)
        down, up = max(0.0, -scale.error(low_bytes)), max(0.0, scale.error(high_bytes))
        errors = [_Scale(near.term, entry.predicted_bytes).error(entry.measured_bytes) for entry in near.entries]
        count, centre = len(errors), median(errors)
        trust = count / (count + near.prior)
        shift = trust * centre
        own_down = own_up = max(_spread(errors, centre), scale.shown)
        if count < _FEW:
            own_down, own_up = max(own_down, down / 2), max(own_up, up / 2)
        if count < _FEW and not near.same_model:
            most_down, most_up = (down, up) if down or up else (scale.reach, scale.reach)
            centre = min(max(centre, -2 * most_down), 2 * most_up)
            shift = min(max(shift, -most_down), most_up)
        new_down = max((1 - trust) * down + trust * own_down, shift - centre)
        new_up = max((1 - trust) * up + trust * own_up, centre - shift)
        return scale.moved(shift), scale.moved(shift - new_down), scale.moved(shift + new_up)

    def _nearest(
        self, term: str, gpu: str, link: str, tensor_parallel_size: int, release: str, model: str
    ) -> _Near | None:
        card_here = card_name(gpu)
        alike = [
            entry
            for entry in self.entries
            if entry.term == term
            and (entry.tensor_parallel_size == 1) == (tensor_parallel_size == 1)
            and (entry.gpu == "cpu") == (card_here == "cpu")
        ]
        card = [entry for entry in alike if entry.gpu == card_here]
        minor = _minor(release)
        same = [
            entry
            for entry in card
            if entry.tensor_parallel_size == tensor_parallel_size and minor and _minor(entry.release) == minor
        ]
        if term == "weights":  # what the weights take is the model's matter, whatever card they lie on
            of_model = [entry for entry in alike if entry.tensor_parallel_size == tensor_parallel_size]
        else:
            of_model = same
        of_model = [entry for entry in of_model if model and entry.model == model]
        on_link = [entry for entry in alike if entry.link == link]
        circles = ((of_model, 0.5), (same, 1.0), (card, 2.0), (on_link, 4.0))
        for found, prior in circles:
            if found:
                return _Near(found[0].term, tuple(found), prior, found is of_model)
        return None


@dataclass(frozen=True)
class _Scale:
    """How a term's error is counted: as the logarithm of a ratio, or in bytes."""

    term: CalibratedTerm
    predicted_bytes: int

    @property
    def is_ratio(self) -> bool:
        return self.term in _RATIO_REACH

    @property
    def reach(self) -> float:
        return _RATIO_REACH[self.term] if self.is_ratio else _OFFSET_REACH[self.term]

    @property
    def shown(self) -> float:
        return math.log1p(_SHOWN_BYTES / self.predicted_bytes) if self.is_ratio else _SHOWN_BYTES

    def error(self, num_bytes: int) -> float:
        if abs(num_bytes - self.predicted_bytes) <= _SHOWN_BYTES:
            return 0.0
        if self.is_ratio:
            return math.log(max(num_bytes, 0.05 * self.predicted_bytes) / self.predicted_bytes)
        return float(num_bytes - self.predicted_bytes)

    def moved(self, by: float) -> int:
        if self.is_ratio:
            return round(self.predicted_bytes * math.exp(by))
        moved = round(self.predicted_bytes + by)
        return moved if self.term == "KV cache" else max(0, moved)


def _spread(errors: Sequence[float], centre: float) -> float:
    """How far from the centre the errors lie, by those nearest to it."""
    distances = sorted(abs(error - centre) for error in errors)
    return _WIDENED * distances[math.ceil(_HELD * len(distances)) - 1]


def card_name(name: str) -> str:
    """The catalogue's name of a card, however a driver or a log spells it; other names as they are."""
    try:
        return gpu(name).name
    except UnknownGpuError:
        return name


def _minor(release: str) -> str:
    found = re.search(r"\b\d+\.\d+", release)
    return found[0] if found else ""


def load_calibration(path: Path) -> Calibration:
    """The table in a file; an empty one where there is no file yet. What another sum predicted is passed over.

    Raises:
        CalibrationError: the file is not such a table, or one of a later Berth.
    """
    way_out = "move it away to start afresh, then `berth size calibrate` with the logs at hand"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["schema_version"]
        if version != SCHEMA_VERSION:
            raise CalibrationError(f"{path}: its schema_version is {version!r}, not {SCHEMA_VERSION}; {way_out}")
        entries = (_entry(row) for row in document["observations"])
        return Calibration(tuple(entry for entry in entries if entry.predictor == PREDICTOR))
    except FileNotFoundError:
        return Calibration()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path}: not a calibration table ({error}); {way_out}") from error


def _entry(row: Mapping[str, object]) -> Observation:
    term, texts = row["term"], ("gpu", "link", "release", "model", "settings")
    numbers = [row[name] for name in ("tensor_parallel_size", "predicted_bytes", "measured_bytes", "predictor")]
    if term not in TERMS:
        raise ValueError(f"no term {term!r}")
    if not all(type(number) is int for number in numbers):
        raise ValueError(f"{numbers} are not all whole numbers")
    gpu, link, release, model, settings = (str(row[name]) for name in texts)
    size, predicted, measured, predictor = (int(str(number)) for number in numbers)
    as_of = date.fromisoformat(str(row["as_of"]))
    return Observation(term, gpu, link, size, release, predicted, measured, model, as_of, settings, predictor)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write the table whole or not at all: whoever reads meanwhile sees the old one. Raises OSError."""
    rows = [{**asdict(entry), "as_of": entry.as_of.isoformat()} for entry in calibration.entries]
    document = {"schema_version": SCHEMA_VERSION, "observations": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(document, indent=2) + "\n")
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
