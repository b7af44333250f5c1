"""Text that nobody vouches for, made such that all of it is seen and none of it acts."""

from __future__ import annotations

# Bidirectional overrides can make text read as what it is not (CVE-2021-42574); separators and zero-width
# characters hide. All are shown by name.
_INVISIBLE = {
    0x200B: "ZWSP", 0x200E: "LRM", 0x200F: "RLM", 0x2028: "LS", 0x2029: "PS", 0x202A: "LRE", 0x202B: "RLE",
    0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI",
    0x2069: "PDI", 0xFEFF: "BOM",
}  # fmt: skip


def seen(text: str) -> str:
    """The text with every control, override and half character as a visible sign. Newlines and tabs stay."""
    return "".join(_seen(char) for char in text)


def _seen(char: str) -> str:
    code = ord(char)
    if char in "\n\t" or 0x20 <= code < 0x7F:
        return char
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code in _INVISIBLE:
        return f"⟦{_INVISIBLE[code]}⟧"
    if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 or code >= 0xE0000 or code & 0xFFFE == 0xFFFE:
        return f"⟦U+{code:04X}⟧"
    return char
