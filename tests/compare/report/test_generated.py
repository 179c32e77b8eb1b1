import pytest

from dsmoe_jax.compare.report import generated


def test_only_the_text_between_the_markers_changes(tmp_path):
    begin, end = generated.markers("results")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    generated.write_into(page, "results", "new")
    assert page.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="expected the markers"):
        generated.write_into(page, "results", "new")
