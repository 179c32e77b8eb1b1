"""Text for a terminal: control characters of files are shown and not obeyed."""

_LEFT = "\n\t"
# C0, DEL and C1; and what reverses the direction of the text around it.
_CODES = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SHOWN = {code: f"\\x{code:02x}" for code in _CODES if chr(code) not in _LEFT}


def printable(text: str) -> str:
    """The text with control characters but line ends and tabs written as their codes."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """`printable`, and line ends and tabs are shown as well."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))
