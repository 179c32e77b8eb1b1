"""The page of a report, read as a browser would."""

import html.parser

from dsmoe_jax.compare.report import build
from tests.compare import made_up


class Links(html.parser.HTMLParser):
    """Collects what a page would load, its anchors, and tags that are not closed."""

    VOID = ("meta", "img")

    def __init__(self):
        super().__init__()
        self.loaded, self.anchors, self.ids, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loaded += [values[name] for name in ("src", "srcset", "data") if name in values]
        if "href" in values:
            self.anchors.append(values["href"])
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(tmp_path):
    records, folder = tmp_path / "records", tmp_path / "report"
    records.mkdir()
    made_up.save_comparison(records, days=(0, 2))
    path = build.write(build.Source(records, "configs/kuairand.py:sample"), folder)
    text = path.read_text()
    links = Links()
    links.feed(text)
    assert links.open == []
    assert len(links.loaded) == 4
    assert all(entry.startswith("data:image/svg+xml;base64,") for entry in links.loaded)
    assert all(entry.startswith("#") and entry[1:] in links.ids for entry in links.anchors)
    assert "url(" not in text
    assert "@import" not in text
    names = ("table1", "table2", "table2_drop2", "table2_pooled", "table3", "table4")
    assert {"fig2", "fig3", "fig4a", "fig4b", *names} <= set(links.ids)
    written = {entry.name for entry in folder.iterdir()}
    assert {f"{name}.csv" for name in names} <= written
    assert {"fig2.png", "fig2.svg", "report.md", "report.html"} <= written
