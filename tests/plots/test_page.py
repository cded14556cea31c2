"""Files of the picture: what they say they are, whole in themselves, and the same each time."""

import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from plots.drawn_stores import agent, cohort, facts_of

from tokendance.plots.page import picture

matplotlib = pytest.importorskip("matplotlib")

ODD = facts_of(
    [
        agent("main", 20, master=True),
        agent("<script>alert('x')</script>&", 20, [3]),
        agent('"><img src="http://example.com/x.png">', 20, [4]),
        agent("esc \x1b[2J\n\0", 20, [5]),
        agent("評論家 🤖 عربي", 20, [6]),
        agent("$x^{2$", 20, [7]),
        agent("]]> -->", 20, [8]),
    ],
    path="odd \udcff & <name>.td",
)


def test_a_png_is_one_and_has_the_size_of_the_picture():
    for facts, inches in ((facts_of(cohort(2)), 1.6 + 4.6), (facts_of(cohort(1000)), 8.5 + 4.6)):
        data = picture(facts, "png")
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", data[16:24]) == pytest.approx((13 * 150, inches * 150), abs=1)
        assert data.endswith(b"IEND\xaeB`\x82")


def test_an_svg_is_xml_with_its_names_as_text():
    root = ET.fromstring(picture(ODD, "svg"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("main (master)", "<script>alert(", "$x^{2$", "評論家 🤖 عربي", "esc \\x1b[2J\\n\\x00", "]]> -->"):
        assert any((word or "").startswith(name) for word in words), (name, words)


class Page(HTMLParser):
    """What a page makes a browser fetch or run, and the rows of its table."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched, self.cells = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = {"src", "href", "xlink:href", "data", "action", "poster", "srcset", "background"}
        self.fetched += [value for name, value in attrs if name in named]
        self.fetched += [value for name, value in attrs if name == "style" and "url(" in value]

    def handle_data(self, data):
        self.cells += [data] if self.tags and self.tags[-1] in ("td", "summary") and data.strip() else []


def test_a_page_needs_no_network_and_runs_nothing():
    text = picture(ODD, "html").decode()
    page = Page()
    page.feed(text)
    assert [one for one in page.fetched if not one.startswith(("#", "data:image/png;base64,"))] == []
    assert {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags) == set()
    assert "default-src 'none'" in text
    # What is left of addresses are names of XML vocabularies, and an agent's name.
    said = re.findall(r"[^\"\s=]*=?\"?https?://[^\"\s<>&]+", text)
    assert [one for one in said if not one.startswith("xmlns") and "example.com" not in one] == []
    assert "<!DOCTYPE svg" not in text


def test_the_page_has_all_numbers_as_a_table():
    page = Page()
    page.feed(picture(facts_of([*cohort(300), agent("short", 7, [2, 3])]), "html").decode())
    assert page.cells[:6] == ["The numbers", "main (master)", "48", "48", "4.7 KiB", "0 B"]
    assert page.cells[-5:] == ["short", "7", "2", "700 B", "200 B"]
    assert len(page.cells) == 1 + 301 * 5


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_the_same_store_gives_the_same_file(kind):
    """Also in another process, and whatever style its user has set."""
    facts = facts_of(cohort(3), n_layers=4)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "red", "savefig.bbox": "tight"}):
        styled = picture(facts, kind)
    assert styled == picture(facts, kind)
    assert dict(matplotlib.rcParams) == before
    ask = (
        "import sys\nfrom plots.drawn_stores import cohort, facts_of\nfrom tokendance.plots.page import picture\n"
        f"sys.stdout.buffer.write(picture(facts_of(cohort(3), n_layers=4), {kind!r}))"
    )
    path = next(path for path in sys.path if path.endswith("tests"))
    command = [sys.executable, "-c", f"import sys; sys.path.append({path!r})\n{ask}"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == styled


def test_fonts_for_letters_that_matplotlibs_own_lacks(monkeypatch):
    from tokendance.plots import page

    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["DejaVu Sans", "PingFang SC", "Comic Sans"])
    assert page._settings()["font.family"] == ["DejaVu Sans", "PingFang SC"]
