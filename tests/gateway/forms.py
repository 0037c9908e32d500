"""Multipart forms as an HTTP client writes them."""

import httpx2

SOUND = b"RIFF\r\n\r\n--\r\n\x00\xff" * 50
"""What a recording may hold: line ends and dashes, as boundaries do."""


def form(fields: dict[str, str], *, file: bytes | None = SOUND) -> bytes:
    """One with a recording, unless `file` is None."""
    files = {name: (None, value.encode()) for name, value in fields.items()}
    if file is not None:
        files["file"] = ("a.wav", file)  # type: ignore[assignment]  # a name makes it a file
    return httpx2.Request("POST", "http://x", files=files).read()


def content_type(body: bytes) -> str:
    """That of a form."""
    boundary, _, _ = body.partition(b"\r\n")
    return f"multipart/form-data; boundary={boundary[2:].decode()}"
