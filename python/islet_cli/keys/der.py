"""The little of DER that keys and signatures need, read strictly.

General parsers accept encodings that differ byte for byte and mean the same; a signature scheme in
which such variants verify is malleable, so every length and integer must be minimal here.

Source: ITU-T X.690 sections 8 and 10.
"""

from __future__ import annotations

SEQUENCE = 0x30
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


class Reader:
    """Reads one level of DER elements from a buffer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def peek(self) -> int | None:
        """The next tag byte, or None at the end."""
        return None if self.at_end else self._data[self._at]

    def element(self, tag: int) -> bytes:
        """Read one element that must have `tag` and return its content.

        Raises:
            DerError: Another tag, a length that is not minimal, or too few bytes.
        """
        if self.peek() != tag:
            raise DerError(f"expected tag {tag:#04x}")
        length, start = self._length(self._at + 1)
        end = start + length
        if end > len(self._data):
            raise DerError("an element is longer than its container")
        self._at = end
        return self._data[start:end]

    def _length(self, at: int) -> tuple[int, int]:
        """Return the length encoded at `at` and the offset after it."""
        if at >= len(self._data):
            raise DerError("a length is missing")
        first = self._data[at]
        if first < 0x80:
            return first, at + 1
        count = first & 0x7F
        # Four length bytes hold more than any key or signature; 0x80 is BER's indefinite form.
        if not 1 <= count <= 4 or at + 1 + count > len(self._data):
            raise DerError("a length is malformed")
        raw = self._data[at + 1 : at + 1 + count]
        length = int.from_bytes(raw, "big")
        if raw[0] == 0 or length < 0x80:
            raise DerError("a length is not minimal")
        return length, at + 1 + count

    def unsigned(self) -> int:
        """Read a minimal, non-negative INTEGER."""
        content = self.element(INTEGER)
        if not content:
            raise DerError("an integer is empty")
        if content[0] & 0x80:
            raise DerError("an integer is negative")
        if len(content) > 1 and content[0] == 0 and not content[1] & 0x80:
            raise DerError("an integer is not minimal")
        return int.from_bytes(content, "big")

    def bit_string(self) -> bytes:
        """Read a BIT STRING of whole bytes."""
        content = self.element(BIT_STRING)
        if not content or content[0] != 0:
            raise DerError("a bit string does not consist of whole bytes")
        return content[1:]

    def finish(self) -> None:
        """Require that nothing follows.

        Raises:
            DerError: Bytes are left over.
        """
        if not self.at_end:
            raise DerError("unexpected bytes follow")


def whole(data: bytes, tag: int) -> bytes:
    """The content of the one element that `data` must consist of."""
    reader = Reader(data)
    content = reader.element(tag)
    reader.finish()
    return content


def encode(tag: int, content: bytes) -> bytes:
    """Encode one element."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    raw = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(raw))) + raw + content


def encode_unsigned(value: int) -> bytes:
    """Encode a non-negative INTEGER."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))
