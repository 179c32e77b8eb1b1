"""Generated blocks of Markdown pages, and the files beside them.

Owns the markers. A page says by its markers which blocks it holds and which command makes them:

    <!-- compare: table2: begin (generated) -->
    <!-- compare: table2: end -->
"""

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Callable, Mapping

from dsmoe_jax import runlog
from dsmoe_jax.compare.report import formats

_BLOCK = re.compile(
    r"(<!-- (\w+): (\w+): begin \(generated\) -->\n).*?(<!-- \2: \3: end -->)", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Block:
    """Text of a page.

    Attributes:
      text: Its Markdown.
      files: Further files in the page's folder: their text by name.
      draw: Draws figures into that folder. Their bytes depend on matplotlib's version: what is
        drawn stands in `files` too, and that is compared.
    """

    text: str
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    draw: Callable[[pathlib.Path], object] | None = None


def list_pages(root: pathlib.Path) -> list[pathlib.Path]:
    """The pages that may hold blocks: README.md and everything under docs/."""
    return [root / "README.md", *sorted(root.glob("docs/**/*.md"))]


def add_options(parser: argparse.ArgumentParser, records: pathlib.Path) -> None:
    """Adds the flags of a command that renders; see `render`."""
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="e.g. README.md; all by default")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is stale")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(), help="of the pages")
    parser.add_argument("--records", type=pathlib.Path, default=records, help="their folder")


def render(
    maker: str, blocks: Mapping[str, Callable[[], Block]], options: argparse.Namespace
) -> int:
    """Writes the blocks of a command on the pages that the flags name; the exit status.

    Args:
      maker: The command, as the markers name it; blocks of others stay.
      blocks: Every block that it makes.
      options: Flags of `add_options`.

    Raises:
      ValueError: When a named page is none, or a page names a block that is none.
    """
    known = list_pages(options.root)
    is_stale = False
    for page in [options.root / page for page in options.pages] or known:
        if page not in known:
            raise ValueError(f"render: expected README.md or a page under docs/, got {page}")
        names = names_in(page, maker)
        if unknown := [name for name in names if name not in blocks]:
            known_names = ", ".join(blocks)
            raise ValueError(f"{page}: expected blocks among {known_names}, got {unknown[0]!r}")
        found = {name: blocks[name]() for name in names}

        def fill(match: re.Match[str], found: Mapping[str, Block] = found) -> str:
            begin, who, name, end = match.groups()
            return f"{begin}{found[name].text}\n{end}" if who == maker else match.group()

        files = {page: _BLOCK.sub(fill, page.read_text())}
        for block in found.values():
            files |= {page.parent / name: text for name, text in block.files.items()}
            if block.draw and not options.check:
                block.draw(page.parent)
        for path, text in files.items():
            if not path.exists() or path.read_text() != text:
                is_stale = True
                print(f"{path}: {'stale, render it again' if options.check else 'written'}")
                if not options.check:
                    runlog.replace_text(path, text)
    return int(options.check and is_stale)


def show_help(module: str, main: Callable[[list[str]], object]) -> Block:
    """What a command and each of its subcommands answer to `--help`, in lines of a fixed width."""
    os.environ["COLUMNS"] = "100"
    parts, commands = [], [""]
    for command in commands:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*filter(None, [command]), "--help"])
        name = f"{module} {command}".strip()
        parts.append(f"## python -m {name}\n\n{formats.code(printed.getvalue())}")
        found = re.search(r"\{([\w,]+)\}", printed.getvalue()) if not command else None
        commands += found.group(1).split(",") if found else []
    return Block("\n\n".join(parts))


def names_in(page: pathlib.Path, maker: str) -> list[str]:
    """The blocks of a page that a command makes."""
    return [name for _, who, name, _ in _BLOCK.findall(page.read_text()) if who == maker]
