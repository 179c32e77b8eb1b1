"""The documents: how long the front page is, that links lead somewhere, what is generated."""

import pathlib
import re

import pytest

from dsmoe_jax.bench import measurements
from dsmoe_jax.compare.report import build, documents, generated

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")]
NO_RECORDS = build.Source(ROOT, "none")
BLOCKS = {
    # The commands add the help of their own.
    "compare": {*documents.Documents(NO_RECORDS, ROOT, NO_RECORDS).blocks, "help"},
    "bench": {*measurements.blocks(ROOT / measurements.PUBLISHED), "help"},
}


def test_the_front_page_is_short_and_begins_with_what_to_type():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0].splitlines()
    commands = [line for line in commands if not line.startswith("#")]
    assert commands[0].endswith(" -m dsmoe_jax.main --config configs/kuairand.py:sample")
    assert commands[1] == "bash .ci/run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    files = [link for link in links if not re.match(r"https?://", link)]
    assert [link for link in files if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("maker", BLOCKS)
def test_every_block_has_a_place_and_every_place_a_block(maker):
    shown = [
        name for page in generated.list_pages(ROOT) for name in generated.names_in(page, maker)
    ]
    assert len(shown) == len(set(shown))
    assert set(shown) == BLOCKS[maker]
