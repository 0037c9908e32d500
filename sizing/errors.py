"""Every way a sizing question can fail, each with a one-line message: what, where, and the way out.

SizingError
├── ModelNotFoundError      no such folder, no such repository, gated, or the Hub cannot be reached
├── ModelFileError          a config.json or a safetensors header that is missing, broken or impossible
├── UnsupportedModelError   a model whose layers or files are not sized yet, refused by name
├── UnknownGpuError         a card that is not in the catalogue
├── QuestionError           settings that contradict each other, the model or the device
└── CalibrationError        a start-up log or a table of measurements that cannot be used
"""


class SizingError(Exception):
    """Root of the tree. The message is one line, fit to be shown to a user as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ModelNotFoundError(SizingError):
    """Nothing to read: a folder or a repository that is not there, or not open to us."""


class ModelFileError(SizingError):
    """A file of the model says nothing, or something impossible."""


class UnsupportedModelError(SizingError):
    """A model that is known not to be sized yet; it is never guessed."""


class UnknownGpuError(SizingError):
    """A card that the catalogue does not hold."""


class QuestionError(SizingError):
    """Settings that cannot be answered because they contradict each other, the model or the device."""


class CalibrationError(SizingError):
    """A start-up log without what was looked for, or a calibration file that is not one."""
