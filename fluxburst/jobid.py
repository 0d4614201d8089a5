"""Job ids for people: the F58 form of RFC 19, such as ``ƒ3aXb``, without the Flux bindings."""

from __future__ import annotations

import base58

from fluxburst.errors import RequestError
from fluxburst.model import JobId


def f58(job_id: int) -> str:
    """The F58 form of an id.

    Raises:
        RequestError: the number is no id: not an unsigned number of 64 bits.
    """
    return "ƒ" + base58.b58encode_int(_checked(job_id, str(job_id))).decode()


def parse(text: str) -> JobId:
    """An id from its F58 form (``ƒ`` or ``f`` in front), decimal, hexadecimal (``0x``) or dotted hexadecimal form.

    Raises:
        RequestError: the text is none of these.
    """
    try:
        if "." in text:
            number = int(text.replace(".", ""), 16)
        elif text[:1] in ("ƒ", "f") and len(text) > 1:
            number = base58.b58decode_int(text[1:])
        else:
            number = int(text, 0)
    except ValueError:
        number = -1
    return _checked(number, text)


def _checked(number: int, text: str) -> JobId:
    if not 0 <= number < 1 << 64:
        raise RequestError(f"{text!r} is no job id; write such as ƒ3aXb, f3aXb or 1234")
    return JobId(number)
