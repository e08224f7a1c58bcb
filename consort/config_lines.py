"""The line on which each key of a TOML text is written, which tomllib does not tell.

Reads only headers, keys and where values end; the text is known to be valid TOML. Keys inside an inline table
or an array are placed at the key that holds them.
"""

from __future__ import annotations

import re

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")
# What can hide a bracket or a quote, longest first; group 1 opens a string that may span lines.
_TOKEN = re.compile(r"""(\"\"\"|''')|"(?:[^"\\]|\\.)*"|'[^']*'|(\#.*)|([\[{])|([\]}])""")


def key_lines(text: str) -> dict[str, int]:
    """Dotted key (`devices.0.slm.model`) -> line number, from 1; sections are keys too."""
    lines: dict[str, int] = {}
    arrays: dict[str, int] = {}  # array of tables -> how many seen
    section = ""
    depth, quote = 0, ""  # of the value that began on an earlier line
    for number, line in enumerate(text.split("\n"), start=1):
        rest = line
        if not depth and not quote:
            if header := _HEADER.match(line):
                section = _numbered(_parts(header[2]), arrays, new=header[1] == "[[")
                lines.setdefault(section.removesuffix("."), number)
                continue
            if key := _KEY.match(line):
                _place(lines, section, _parts(key[1]), number)
                rest = line[key.end() :]
        depth, quote = _value_end(rest, depth, quote)
    return lines


def _place(lines: dict[str, int], section: str, parts: list[str], number: int) -> None:
    for length in range(1, len(parts) + 1):
        lines.setdefault(section + ".".join(parts[:length]), number)


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(_PART, dotted)]


def _numbered(parts: list[str], arrays: dict[str, int], *, new: bool) -> str:
    """`devices.slm` as `devices.1.slm.` where `devices` is an array of tables that has its second element."""
    key = ""
    for depth, part in enumerate(parts):
        key += part
        if new and depth == len(parts) - 1:
            arrays[key] = arrays.get(key, 0) + 1
        key += f".{arrays[key] - 1}." if key in arrays else "."
    return key


def _value_end(rest: str, depth: int, quote: str) -> tuple[int, str]:
    """Open brackets and open long string after `rest`."""
    position = 0
    while position < len(rest):
        if quote:
            close = re.compile(r"\\.|" + quote if quote == '"""' else quote)
            found = close.search(rest, position)
            while found and found[0] != quote:
                found = close.search(rest, found.end())
            if not found:
                return depth, quote
            position, quote = found.end(), ""
            continue
        token = _TOKEN.search(rest, position)
        if not token or token[2]:
            break
        position, quote = token.end(), token[1] or ""
        depth += bool(token[3]) - bool(token[4])
    return depth, quote
