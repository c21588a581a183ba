"""As much of a DNS message (RFC 1035, section 4) as passing it on needs. Pure; everything here is an attacker's."""

import struct
from dataclasses import dataclass

HEADER = 12
FORMERR, SERVFAIL, NOTIMP, REFUSED = 1, 2, 4, 5
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0200, 0x0100, 0x0080


@dataclass(frozen=True)
class Query:
    """`question`: name, type and class as they came, which an answer must repeat. `error`: the code to refuse it
    with, 0 for a good one."""

    identifier: int
    flags: int
    question: bytes
    error: int = 0


def parse_query(data: bytes) -> Query | None:
    """None for what deserves no answer at all: too short, or itself an answer (two servers would talk for ever)."""
    if len(data) < HEADER:
        return None
    identifier, flags, questions = struct.unpack_from(">HHH", data)
    if flags & _RESPONSE:
        return None
    if flags & _OPCODE:
        return Query(identifier, flags, b"", NOTIMP)
    end = question_end(data)
    if questions != 1 or end is None:
        return Query(identifier, flags, b"", FORMERR)
    return Query(identifier, flags, data[HEADER:end])


def question_end(data: bytes) -> int | None:
    """Where the first question ends; None when it is no plain name of at most 255 bytes (a question cannot be
    compressed) with type and class."""
    offset = HEADER
    while offset < len(data) and offset - HEADER < 255:
        size = data[offset]
        if size > 63:
            return None
        offset += 1 + size
        if not size:
            return offset + 4 if offset + 4 <= len(data) else None
    return None


def with_identifier(data: bytes, identifier: int) -> bytes:
    return struct.pack(">H", identifier) + data[2:]


def answers(data: bytes, identifier: int, question: bytes) -> bool:
    """Whether `data` answers the query that was sent under this identifier. Names compare without case."""
    if len(data) < HEADER or struct.unpack_from(">H", data)[0] != identifier or not data[2] & 0x80:
        return False
    if struct.unpack_from(">H", data, 4)[0] == 0:
        return data[3] & 0x0F != 0  # servers that refuse may leave out the question
    end = question_end(data)
    return (
        end is not None
        and data[HEADER : end - 4].lower() == question[:-4].lower()
        and (data[end - 4 : end] == question[-4:])
    )


def is_truncated(data: bytes) -> bool:
    return bool(struct.unpack_from(">H", data, 2)[0] & _TRUNCATED)


def failed(data: bytes) -> bool:
    """A server that cannot or will not say: another one may."""
    return data[3] & 0x0F in (SERVFAIL, NOTIMP, REFUSED)


def error_answer(query: Query, code: int) -> bytes:
    flags = _RESPONSE | (query.flags & (_OPCODE | _RECURSION_DESIRED)) | _RECURSION_AVAILABLE | code
    return struct.pack(">HHHHHH", query.identifier, flags, 1 if query.question else 0, 0, 0, 0) + query.question
