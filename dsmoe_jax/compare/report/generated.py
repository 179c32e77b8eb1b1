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
from collections.abc import Callable, Iterable, Mapping

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
    """Adds the flags of a command that renders; see `render_all`."""
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="e.g. README.md; all by default")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is stale")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(), help="of the pages")
    parser.add_argument("--records", type=pathlib.Path, default=records, help="their folder")


def render_all(
    maker: str, blocks: Mapping[str, Callable[[], Block]], options: argparse.Namespace
) -> int:
    """Renders the pages that the flags name and says which files were stale; the exit status.

    Raises:
      ValueError: When a named page is none.
    """
    known = list_pages(options.root)
    pages = [options.root / page for page in options.pages] or known
    for page in pages:
        if page not in known:
            raise ValueError(f"render: expected README.md or a page under docs/, got {page}")
    stale = render(maker, blocks, pages, check=options.check)
    for path in stale:
        print(f"{path}: {'stale, render it again' if options.check else 'written'}")
    return int(options.check and bool(stale))


def show_help(module: str, main: Callable[[list[str]], object]) -> Block:
    """What a command and each of its subcommands answer to `--help`, in lines of a fixed width."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    parts, commands = [], [""]
    for command in commands:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*filter(None, [command]), "--help"])
        name = f"{module} {command}".strip()
        parts.append(f"## python -m {name}\n\n{formats.code(printed.getvalue())}")
        found = re.search(r"\{([\w,]+)\}", printed.getvalue()) if not command else None
        commands += found.group(1).split(",") if found else []
    os.environ.pop("COLUMNS")
    if before is not None:
        os.environ["COLUMNS"] = before
    return Block("\n\n".join(parts))


def names_in(page: pathlib.Path, maker: str) -> list[str]:
    """The blocks of a page that a command makes."""
    return [name for _, who, name, _ in _BLOCK.findall(page.read_text()) if who == maker]


def render(
    maker: str,
    blocks: Mapping[str, Callable[[], Block]],
    pages: Iterable[pathlib.Path],
    *,
    check: bool = False,
) -> list[pathlib.Path]:
    """Writes the blocks of pages, and the files beside them; returns the files that were stale.

    Args:
      maker: The command, as the markers name it; blocks of others stay.
      blocks: Every block that it makes.
      pages: Where to look for them.
      check: Write nothing.

    Raises:
      ValueError: When a page names a block that the command does not make.
    """
    stale = []
    for page in pages:
        found: dict[str, Block] = {}
        for name in names_in(page, maker):
            if name not in blocks:
                known = ", ".join(blocks)
                raise ValueError(f"{page}: expected blocks among {known}, got {name!r}")
            found[name] = blocks[name]()

        def fill(match: re.Match[str], found: Mapping[str, Block] = found) -> str:
            begin, who, name, end = match.groups()
            return f"{begin}{found[name].text}\n{end}" if who == maker else match.group()

        files = {page: _BLOCK.sub(fill, page.read_text())}
        for block in found.values():
            files |= {page.parent / name: text for name, text in block.files.items()}
        for path, text in files.items():
            if not path.exists() or path.read_text() != text:
                stale.append(path)
                if not check:
                    runlog.replace_text(path, text)
        if not check:
            for block in found.values():
                if block.draw:
                    block.draw(page.parent)
    return stale
