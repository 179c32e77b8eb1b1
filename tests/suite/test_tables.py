"""What a table looks like, whatever is in it."""

from dsmoe_jax.suite import tables


def test_markdown_and_html_mark_alike():
    row = (tables.Value("a <b>"), tables.Value("1.0", "best"), tables.Value("2", "second", "noise"))
    table = tables.Table("t", "T", ("", "x", "y"), (row,), ("a note",))
    assert tables.to_markdown(table).splitlines()[2] == "| a <b> | **1.0** | <u>2 ≈</u> |"
    text = tables.to_html(table)
    assert '<td class="best">1.0</td>' in text
    assert '<td class="second noise">2 <span class="sign">≈</span></td>' in text
    assert "a &lt;b&gt;" in text
