import argparse

import pytest

from dsmoe_jax.compare.report import generated


def marked(maker, name, text=""):
    return f"<!-- {maker}: {name}: begin (generated) -->\n{text}<!-- {maker}: {name}: end -->\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "README.md").write_text(f"before\n{marked('compare', 'a', 'old')}after\n")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    page = marked("compare", "b") + marked("bench", "a", "kept\n")
    (tmp_path / "docs" / "results" / "page.md").write_text(page)
    return tmp_path


def render(root, blocks, *arguments):
    parser = argparse.ArgumentParser()
    generated.add_options(parser, root)
    options = parser.parse_args([*arguments, f"--root={root}"])
    return generated.render("compare", blocks, options)


BLOCKS = {
    "a": lambda: generated.Block("new"),
    "b": lambda: generated.Block(
        "table", {"b.csv": "1,2\n"}, lambda folder: (folder / "b.svg").write_text("drawn")
    ),
}


def test_only_what_is_between_the_makers_markers_changes(root):
    assert render(root, BLOCKS) == 0
    readme = "before\n" + marked("compare", "a", "new\n") + "after\n"
    assert (root / "README.md").read_text() == readme
    page = marked("compare", "b", "table\n") + marked("bench", "a", "kept\n")
    assert (root / "docs" / "results" / "page.md").read_text() == page
    assert (root / "docs" / "results" / "b.csv").read_text() == "1,2\n"
    assert (root / "docs" / "results" / "b.svg").read_text() == "drawn"


def test_a_check_names_what_is_stale_and_writes_nothing(root, capsys):
    assert render(root, BLOCKS, "--check") == 1
    lines = capsys.readouterr().out.splitlines()
    stale = [root / "README.md", *(root / "docs/results" / n for n in ("page.md", "b.csv"))]
    assert lines == [f"{path}: stale, render it again" for path in stale]
    assert not (root / "docs/results/b.csv").exists()
    render(root, BLOCKS)
    assert render(root, BLOCKS, "--check") == 0
    (root / "docs/results/b.csv").write_text("1,3\n")
    assert render(root, BLOCKS, "--check", "README.md") == 0
    assert render(root, BLOCKS, "--check", "docs/results/page.md") == 1


def test_an_unknown_block_and_an_unknown_page_are_refused(root):
    with pytest.raises(ValueError, match=r"page.md: expected blocks among a, got 'b'"):
        render(root, {"a": BLOCKS["a"]})
    with pytest.raises(ValueError, match=r"expected README.md or a page under docs/"):
        render(root, BLOCKS, "docs/other.md")


def test_a_commands_help_has_that_of_its_subcommands():
    def main(argv):
        parser = argparse.ArgumentParser(prog="tool")
        parser.add_subparsers().add_parser("go").add_argument("--far", help="not near")
        parser.parse_args(argv)

    text = generated.show_help("tool", main).text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "## python -m tool",
        "## python -m tool go",
    ]
    assert "not near" in text
