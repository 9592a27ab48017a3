"""Characters as identities, fonts as cameras: what a font lacks is left out, parts are disjoint, shards the same each time."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection
from fontTools.ttLib.tables._g_l_y_f import Glyph

from benchmarks.glyphs import FONTS, QUERIES, Glyphs, find_fonts, glyphs_of, kanji, listed, main, parts_of, unified
from datasets.errors import InputError
from datasets.inspect import faults
from datasets.media.decode import decode
from datasets.object_storage import open_objects
from datasets.pack import pack_listing
from datasets.shards.index import Index

LETTERS = "ABCDEFGHKLΔΣΩ"
FACES = {  # as if they were these fonts
    "ukai.ttc:0": "DejaVuSans-Oblique", "setofont.ttf": "DejaVuSerif-Bold", "kiloji.ttf": "DejaVuSans",
    "monapo.ttf": "DejaVuSerif", "ipamjm.ttf": "DejaVuSansMono",
}  # fmt: skip


def bundled(name: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def box(width: int) -> Glyph:
    """A filled rectangle; none for a width of 0."""
    pen = TTGlyphPen(None)
    if width:
        pen.moveTo((0, 0))
        for corner in ((0, 700), (width, 700), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
    return pen.glyph()


def font_of(widths: Mapping[str, int | None]) -> FontBuilder:
    """A font whose characters are rectangles of these widths, of 1,000 to the em; None: the picture for missing glyphs."""
    names = {character: ".notdef" if width is None else f"g{ord(character)}" for character, width in widths.items()}
    glyphs = {".notdef": 300} | {names[character]: width for character, width in widths.items() if width is not None}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    builder.setupGlyf({name: box(width) for name, width in glyphs.items()})
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupOS2()
    builder.setupPost()
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    return builder


def packed(folder: Path) -> Index:
    """Letters in the bundled fonts: three held out, the others train."""
    parts = parts_of(LETTERS, held_out=3)
    images = {face: glyphs_of(bundled(name), 0, LETTERS, 24) for face, name in FACES.items()}
    archive, listing = listed(images, set(parts.test), set(parts.train), 24)
    return pack_listing("glyphs", "letters", archive, listing, str(folder))


def test_kanji_are_those_of_the_japanese_mail_encoding() -> None:
    def known(code: int) -> bool:
        return len(chr(code).encode("iso2022_jp", "ignore")) > 1  # with escapes

    ideographs = {chr(code) for code in range(0x4E00, 0xA000) if known(code)}
    assert ideographs - set(kanji()) == {"仝"}  # a sign of row 1
    assert (len(kanji()), len(set(kanji()))) == (6355, 6355)
    assert (kanji()[0], kanji()[-1]) == ("亜", "熙")


def test_parts_are_disjoint_and_always_the_same() -> None:
    parts = parts_of(kanji())
    assert [len(part) for part in parts] == [1000, 1000, 4355]
    assert set().union(*parts) == set(kanji())
    assert "".join(parts.dev[:3]) == "賎甜富"  # settings chosen on this part were not chosen on another
    assert [len(part) for part in parts_of(unified())] == [1000, 1000, 18902]


def test_what_a_font_lacks_is_left_out(tmp_path: Path) -> None:
    """Blank, not in its table, in its table as its picture for missing glyphs, or one placeholder for many."""
    font_of({"b": 0, "m": None, **dict.fromkeys("pqrs", 500), **dict.fromkeys("uvw", 600), "x": 700}).save(tmp_path / "boxes.ttf")
    assert set(glyphs_of(tmp_path / "boxes.ttf", 0, "bmpqrsuvwxz", 40)) == set("uvwx")
    assert set(glyphs_of(bundled("DejaVuSans"), 0, "A亜唖", 40)) == {"A"}


def test_a_picture_holds_the_font_s_square_and_its_ink_is_half_way_down(tmp_path: Path) -> None:
    font_of({"x": 500}).save(tmp_path / "boxes.ttf")  # 500 x 700, on the line and at the left of the square
    image = decode(glyphs_of(tmp_path / "boxes.ttf", 0, "x", 40)["x"])
    rows, columns = np.nonzero(image[:, :, 0] < 128)
    assert image.shape == (40, 40, 3)
    assert (columns.min(), columns.max() + 1) == (2, 2 + 0.5 * 36)  # 0.9 of 40 is 36: 2 are left on each side
    assert np.ptp(rows) + 1 == pytest.approx(0.7 * 36, abs=1)
    assert rows.mean() + 0.5 == pytest.approx(20, abs=1)


def test_a_face_of_a_collection(tmp_path: Path) -> None:
    collection = TTCollection()
    collection.fonts = [font_of({"x": 200}).font, font_of({"x": 600}).font]
    collection.save(tmp_path / "two.ttc")
    narrow, wide = (decode(glyphs_of(tmp_path / "two.ttc", face, "x", 40)["x"]) for face in (0, 1))
    assert (wide < 128).sum() == pytest.approx(3 * (narrow < 128).sum(), rel=0.1)
    with pytest.raises(InputError, match="a font that cannot be read"):
        glyphs_of(tmp_path / "two.ttc", 2, "x", 40)


def test_shards_have_fonts_as_cameras_and_are_the_same_each_time(tmp_path: Path) -> None:
    index = packed(tmp_path / "set")
    assert not list(faults(index, read=True))
    assert (index.about["size"], index.about["mirror"]) == ([24, 24], False)
    assert set(index.cameras) == {"ukai", "setofont", "kiloji", "monapo", "ipamjm"}
    parts = parts_of(LETTERS, held_out=3)
    cameras = {"train": set(index.cameras), "query": {"ukai", "setofont"}, "gallery": {"kiloji", "monapo", "ipamjm"}}
    split_of, camera_of = index.blocks["split"][index.samples["block"]], index.samples["camera"]
    who = index.identity_of(np.arange(len(index)))
    for split, letters in (("train", parts.train), ("query", parts.test), ("gallery", parts.test)):
        rows = np.flatnonzero(split_of == index.splits.index(split))
        found = {(index.identities[who[row]], index.cameras[camera_of[row]]) for row in rows}
        names = {letter if letter.isascii() else f"u{ord(letter):04x}" for letter in letters}
        assert found == {(name, camera) for name in names for camera in cameras[split]}
        assert len(rows) == len(found)
    packed(tmp_path / "again")
    first, second = (open_objects(str(tmp_path / name)) for name in ("set", "again"))
    assert first.sizes().keys() == second.sizes().keys()
    assert all(first.get(name) == second.get(name) for name in first.sizes())


def test_missing_fonts_are_reported_with_their_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = [face for face in FONTS if face not in QUERIES][:7]
    for face in faces:
        path = tmp_path / "deep" / face.partition(":")[0]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(InputError, match=r"only 7 of 26 fonts.*apt-get install .*fonts-arphic-ukai fonts-arphic-uming .*--fonts"):
        find_fonts((tmp_path,))
    with pytest.raises(InputError, match=r"only 0 of 26 fonts"):
        main(Glyphs(str(tmp_path / "set"), fonts=(tmp_path / "nowhere",)))
    (tmp_path / "VL-PGothic-Regular.ttf").touch()
    with pytest.raises(InputError, match=r"only 8 of 26 fonts.*one of them for queries"):
        find_fonts((tmp_path,))
    (tmp_path / "setofont.ttf").touch()
    assert set(find_fonts((tmp_path,))) == {*faces, "VL-PGothic-Regular.ttf", "setofont.ttf"}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "9 of 26 fonts found" in said
    assert "fonts-seto" not in said


@pytest.mark.parametrize("change", [{"size": 15}, {"characters": 1}])
def test_refused_values(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(change))} must be at least"):
        Glyphs("set", **change)  # type: ignore[arg-type]
