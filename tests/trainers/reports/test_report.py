import base64
import hashlib
import struct
import zlib
from html.parser import HTMLParser

import pytest

from trainers.reports.page import Choice, Page

VOID = {"meta", "img", "source", "br", "input"}


def png(width: int, height: int) -> bytes:
    """A black picture, made by hand (PNG, W3C, section 11.2)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress(bytes((width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


class Reader(HTMLParser):
    """Reads a page strictly: every element that opens must close, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def full_page() -> Page:
    page = Page("Person re-ID", "run a3f2, 2 workers")
    page.numbers("Before and after", [("mAP", 0.6183, "0.0342 before"), ("images", 12345, "")])
    page.table(
        "Retrieval", ["metric", "before", "after"], [["mAP", 0.0342, 0.6183], ["Rank-1", None, 0.842]], note="unseen identities"
    )
    page.figure("Curves", png(20, 10), "loss over step", dark=png(20, 12))
    page.figure("Galleries", png(6, 8))
    page.text("Notes", "first paragraph\nsecond line\n\n\nsecond paragraph")
    return page


def test_sections_come_in_their_order_with_all_they_hold() -> None:
    read = Reader(full_page().html())
    assert read.said("title") == read.said("h1") == ["Person re-ID"]
    assert read.said("h2") == ["Before and after", "Retrieval", "Curves", "Galleries", "Notes"]
    assert read.said("th") == ["metric", "before", "after"]
    assert read.said("td") == ["mAP", "0.0342", "0.6183", "Rank-1", "–", "0.842"]
    assert read.said("strong") == ["0.6183", "12,345"]
    assert read.said("figcaption") == ["loss over step"]
    assert read.said("p") == ["run a3f2, 2 workers", "unseen identities", "first paragraph\nsecond line", "second paragraph"]


def test_columns_of_numbers_are_flush_right_with_their_heads() -> None:
    read = Reader(full_page().html())
    assert [cell.get("class", "") for cell in read.all("th")] == ["", "number", "number"]
    assert [cell.get("class", "") for cell in read.all("td")] == ["", "number", "number"] * 2


def test_links_lead_to_the_sections() -> None:
    read = Reader(full_page().html())
    assert [link["href"] for link in read.all("a")] == [f"#{section['id']}" for section in read.all("section")]
    assert read.said("a") == read.said("h2")


def test_pictures_are_inside_and_whole() -> None:
    read = Reader(full_page().html())
    images = read.all("img")
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(image["src"].removeprefix(prefix), validate=True) for image in images] == [png(20, 10), png(6, 8)]
    assert [(image["width"], image["height"], image["alt"]) for image in images] == [
        ("10", "5", "Curves"),
        ("3", "4", "Galleries"),
    ]
    (dark,) = read.all("source")
    assert "prefers-color-scheme:dark" in dark["media"]
    assert base64.b64decode(dark["srcset"].removeprefix(prefix), validate=True) == png(20, 12)


def test_the_page_asks_for_nothing() -> None:
    text = full_page().html()
    read = Reader(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in read.elements}
    (policy,) = (meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b &lt; c", "' onload='x"])
def test_every_text_stays_text(evil: str) -> None:
    page = Page(evil, evil)
    page.numbers(evil, [(evil, evil, evil)])
    page.table(evil, [evil], [[evil]], note=evil)
    page.figure(evil, png(2, 2), evil, dark=png(2, 2))
    page.text(evil, evil)
    read = Reader(page.html())
    harmless = Page("t", "t")
    harmless.numbers("t", [("t", "t", "t")])
    harmless.table("t", ["t"], [["t"]], note="t")
    harmless.figure("t", png(2, 2), "t", dark=png(2, 2))
    harmless.text("t", "t")
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in Reader(harmless.html()).elements]
    assert [attributes.keys() for _, attributes in read.elements] == [
        attributes.keys() for _, attributes in Reader(harmless.html()).elements
    ]
    assert read.all("img")[0]["alt"] == evil
    for tag in ("title", "h1", "h2", "th", "td", "dt", "strong", "small", "figcaption", "p"):
        assert set(read.said(tag)) == {evil}


def test_names_that_are_not_utf_8_can_be_written() -> None:
    page = Page("caf\udce9")
    page.table("t", ["name"], [["\udcff 中 ✓"]])
    text = page.html().encode("utf-8").decode("utf-8")
    assert "caf?" in text
    assert "? 中 ✓" in text


def test_empty_page_and_empty_table() -> None:
    read = Reader(Page("nothing yet").html())
    assert read.said("h1") == ["nothing yet"]
    assert read.all("section") == []
    assert read.all("nav") == []
    page = Page("t")
    page.table("no rows", ["a", "b"], [])
    page.text("", "")
    read = Reader(page.html())
    assert read.said("th") == ["a", "b"]
    assert read.said("p") == ["(none)"]
    assert len(read.all("section")) == 2


def test_what_does_not_fit_is_refused() -> None:
    page = Page("t")
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        page.table("t", ["a", "b"], [["only one"]])
    for broken in (b"", b"\xff\xd8\xff\xe0 a JPEG", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match="not a PNG"):
            page.figure("t", broken)
        with pytest.raises(ValueError, match="not a PNG"):
            page.figure("t", png(2, 2), dark=broken)
    assert Reader(page.html()).all("section") == []


def page_of_choices(evil: str = "a & <b>") -> Page:
    page = Page("choices")
    page.choices("Pairs", [Choice(evil, "0.91", f'same,"{evil}",', True, [(evil, [b"\xff\xd8 one", b"\xff\xd8 two"]), ("b", [])]),
                           Choice("second", "0.40", "same,c,d", False, [])], "tick what is right")  # fmt: skip
    page.choices("None", [])
    page.download("Download", "decisions.csv", "accept,kind", "no,wrong,<x>\nno,wrong,y\n")
    return page


def test_choices_have_their_pictures_and_their_row_of_the_csv() -> None:
    read = Reader(page_of_choices().html())
    first, second = read.all("input")
    assert (first["data-row"], "checked" in first) == ('same,"a & <b>",', True)
    assert (second["data-row"], "checked" in second) == ("same,c,d", False)
    images = [image["src"].removeprefix("data:image/jpeg;base64,") for image in read.all("img")]
    assert [base64.b64decode(image) for image in images] == [b"\xff\xd8 one", b"\xff\xd8 two"]
    assert read.said("label") == ["a & <b>", "second"]
    assert read.said("pre") == ["\nno,wrong,<x>\nno,wrong,y\n"]  # a browser drops the first line end
    assert read.all("button") == [{"type": "button", "data-file": "decisions.csv", "data-header": "accept,kind"}]
    assert "(none)" in read.said("p")


def test_only_the_script_of_the_choices_may_run() -> None:
    read = Reader(page_of_choices().html())
    (script,) = read.said("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not [word for word in ("http:", "https:", "fetch(", "innerHTML") if word in script]


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='x"])
def test_every_text_of_a_choice_stays_text(evil: str) -> None:
    tags = [tag for tag, _ in Reader(page_of_choices(evil).html()).elements]
    assert tags == [tag for tag, _ in Reader(page_of_choices().html()).elements]
