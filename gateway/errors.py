"""The gateway's error tree.

GatewayError
├── ConfigError        a setting that cannot work; one line: what, where, the way out
├── RefusedError       a request turned away before any engine saw it; carries the Fault to answer with
└── UpstreamError      a replica did not deliver
    ├── ConnectError   the connection could not be made: the engine never saw the request
    ├── BrokenError    the connection broke after it was made
    │   └── SilentError    nothing came over it for too long
    └── AnswerError    the engine answered with an error; carries it as a Fault
"""

from gateway.wire import Fault


class GatewayError(Exception):
    """Root of everything the gateway raises on purpose."""


class ConfigError(GatewayError):
    """A setting that cannot work; the message is one line for the operator."""


class RefusedError(GatewayError):
    """A request turned away by the gateway itself."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class UpstreamError(GatewayError):
    """A replica did not deliver."""


class ConnectError(UpstreamError):
    """No connection to the replica."""


class BrokenError(UpstreamError):
    """The connection to the replica broke."""


class SilentError(BrokenError):
    """Nothing came from the replica for too long."""


class AnswerError(UpstreamError):
    """The engine answered with an error."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault
