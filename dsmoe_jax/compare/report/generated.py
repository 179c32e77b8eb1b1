"""Generated sections of a Markdown page, each between its markers."""

import pathlib

from dsmoe_jax import runlog


def markers(section: str) -> tuple[str, str]:
    """What encloses a generated section of a Markdown file."""
    return f"<!-- {section}: begin (generated) -->", f"<!-- {section}: end -->"


def write_into(readme: pathlib.Path, section: str, text: str) -> None:
    """Replaces what is between the markers of a section of a Markdown file.

    Raises:
      ValueError: When the markers are not there once each.
    """
    page = readme.read_text()
    begin, end = markers(section)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{readme}: expected the markers {begin} and {end} once each")
    before, rest = page.split(begin)
    _, after = rest.split(end)
    runlog.replace_text(readme, f"{before}{begin}\n{text}\n{end}{after}")
