"""Job ids for people: the F58 form of RFC 19, such as ``ƒ3aXb``, without the Flux bindings."""

from __future__ import annotations

import base58

from fluxburst.errors import RequestError
from fluxburst.model import JobId


def f58(job_id: int) -> str:
    """The F58 form of an id."""
    return "ƒ" + base58.b58encode_int(job_id).decode()


def parse(text: str) -> JobId:
    """An id from its F58 form (``ƒ`` or ``f`` in front), decimal, hexadecimal (``0x``) or dotted hexadecimal form.

    Raises:
        RequestError: the text is none of these.
    """
    try:
        if text[:1] in ("ƒ", "f") and "." not in text:
            return JobId(base58.b58decode_int(text[1:]))
        if "." in text:
            return JobId(int(text.replace(".", ""), 16))
        return JobId(int(text, 0))
    except ValueError:
        raise RequestError(f"{text!r} is no job id; write such as ƒ3aXb, f3aXb or 1234") from None
