"""What a table looks like, whatever is in it."""

from dsmoe_jax.compare.report import formats


def test_markdown_and_html_mark_alike():
    row = (
        formats.Value("a <b>"),
        formats.Value("1.0", "best"),
        formats.Value("2", "second", "noise"),
    )
    table = formats.Table("t", "T", ("", "x", "y"), (row,), ("a note",))
    assert formats.to_markdown(table).splitlines()[2] == "| a <b> | **1.0** | <u>2 ≈</u> |"
    text = formats.to_html(table)
    assert '<td class="best">1.0</td>' in text
    assert '<td class="second noise">2 <span class="sign">≈</span></td>' in text
    assert "a &lt;b&gt;" in text
