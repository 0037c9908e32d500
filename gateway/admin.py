"""Who may tell the gateway to do something: an admin key from anywhere, or this machine speaking for itself."""

import ipaddress
from collections.abc import Sequence

from gateway.errors import RefusedError
from gateway.headers import Header, read_head
from gateway.identity import Keyring
from gateway.wire import Fault

_FOR_ANOTHER = frozenset(
    # a proxy on this machine passes on what came from elsewhere; a browser what any page told it to
    (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via", b"origin", b"sec-fetch-site")
)


def check_admin(keyring: Keyring, headers: Sequence[Header], peer: str | None) -> None:
    """`peer` is the address that the connection comes from. Raises RefusedError (403)."""
    if keyring.is_admin(read_head(headers).key):
        return
    if peer is not None and _is_loopback(peer) and not any(name in _FOR_ANOTHER for name, _ in headers):
        return
    message = "this needs a key with `admin: true` in berth.yaml, or a request from the gateway's own machine"
    raise RefusedError(Fault(403, message, code="admin_only", should_retry=False))


def _is_loopback(peer: str) -> bool:
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
