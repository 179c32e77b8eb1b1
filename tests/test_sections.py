import pytest

from dsmoe_jax import sections


def test_only_the_text_between_the_markers_changes(tmp_path):
    begin, end = sections.markers("results")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    sections.write_into(page, "results", "new")
    assert page.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="expected the markers"):
        sections.write_into(page, "results", "new")
