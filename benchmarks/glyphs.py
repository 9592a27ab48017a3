"""A set of thousands of identities that anyone can make: a character is an identity, a font its camera. Look-alikes abound.

    python -m benchmarks.glyphs SHARDS [--held-out dev | test] [--set kanji | unified]

It writes shards with the splits train, query and gallery. The fonts are free ones of Debian; the command names the packages of
those that are missing. A draw that is always the same holds out 1,000 characters to choose settings by (`dev`) and 1,000 others
to report (`test`); the rest trains, the same in both. Queries are the held-out characters in six fonts of different styles, the
gallery those in all others. The same fonts and libraries give the same bytes. Nothing of it is shipped: each font has its own
licence.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.layouts.archive import Archive
from datasets.layouts.listing import Listing, Sample, clean
from datasets.pack import pack_listing

FONTS = {  # a file, and the face in it if it is a collection: Debian's package
    "NotoSerifCJK-Regular.ttc:0": "fonts-noto-cjk",
    "NotoSerifCJK-Black.ttc:2": "fonts-noto-cjk-extra",
    "NotoSansCJK-Thin.ttc:0": "fonts-noto-cjk-extra",
    "NotoSansCJK-Bold.ttc:3": "fonts-noto-cjk",
    "wqy-zenhei.ttc:0": "fonts-wqy-zenhei",
    "wqy-microhei.ttc:0": "fonts-wqy-microhei",
    "TW-Kai-98_1.ttf": "fonts-cns11643-kai",
    "TW-Sung-98_1.ttf": "fonts-cns11643-sung",
    "setofont.ttf": "fonts-seto",
    "kiloji.ttf": "fonts-kiloji",
    "migu-1p-regular.ttf": "fonts-migmix",
    "LXGWWenKai-Regular.ttf": "fonts-lxgw-wenkai",
    "kouzan-mouhitsu.ttf": "fonts-kouzan-mouhitsu",
    "kouzan-mouhitsu-gyosho.ttf": "fonts-kouzan-mouhitsu",
    "aoyagi-soseki.ttf": "fonts-aoyagi-soseki",
    "ipamjm.ttf": "fonts-ipamj-mincho",
    "HanaMinA.ttf": "fonts-hanazono",
    "BabelStoneHan.ttf": "fonts-babelstone-han",
    "BIZUDGothic-Regular.ttf": "fonts-morisawa-bizud-gothic",
    "TakaoPGothic.ttf": "fonts-takao-gothic",
    "ukai.ttc:0": "fonts-arphic-ukai",
    "YOzRS_.ttf": "fonts-yozvox-yozfont",
    "monapo.ttf": "fonts-monapo",
    "uming.ttc:0": "fonts-arphic-uming",
    "VL-PGothic-Regular.ttf": "fonts-vlgothic",
    "TakaoPMincho.ttf": "fonts-takao-mincho",
}
QUERIES = (  # serif, sans, regular script, pen, felt pen, brush
    "NotoSerifCJK-Regular.ttc:0", "BIZUDGothic-Regular.ttf", "ukai.ttc:0", "YOzRS_.ttf", "setofont.ttf", "kouzan-mouhitsu.ttf",
)  # fmt: skip
MIN_FONTS = 8
HELD_OUT = 1000  # characters of `dev`, and of `test`
EM = 0.9  # side of a font's square, as a part of the image's
NO_CHARACTER = "\uffff"  # no font has it, so that it shows what a font draws for a missing glyph
PLACEHOLDER = 4  # characters with one and the same picture: a box for what is not drawn yet


@dataclass(frozen=True)
class Glyphs:
    """Render characters in free fonts, and pack them: a character is an identity, a font its camera."""

    destination: str = field(metadata=POSITIONAL)
    """A folder or s3://bucket/prefix, for the shards."""
    held_out: Literal["dev", "test"] = "dev"
    """Characters that are queries and gallery: dev to choose settings by, test to report."""
    set: Literal["kanji", "unified"] = "kanji"
    """kanji: the 6,355 of JIS X 0208. unified: the 20,902 ideographs from U+4E00 to U+9FA5, many of them in few fonts."""
    characters: int | None = None
    """Training characters, for a smaller set; None: all."""
    size: int = 40
    """Side of an image in pixels."""
    fonts: tuple[Path, ...] = (Path("/usr/share/fonts"),)
    """Folders that are searched for the fonts."""
    overwrite: bool = False
    """Replace the shards at the destination."""

    def __post_init__(self) -> None:
        if self.size < 16:
            raise InputError("--size must be at least 16", str(self.size))
        if self.characters is not None and self.characters < 2:
            raise InputError("--characters must be at least 2", str(self.characters))


class Parts(NamedTuple):
    """Characters by what they are for; disjoint."""

    dev: list[str]
    test: list[str]
    train: list[str]


def kanji() -> list[str]:
    """The 6,355 kanji of JIS X 0208, rows 16 to 84, in its order."""
    codes = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 85) for cell in range(1, 95))
    return [character for code in codes if (character := code.decode("euc_jp", "ignore"))]


def unified() -> list[str]:
    """The 20,902 CJK unified ideographs of Unicode 1.1."""
    return [chr(code) for code in range(0x4E00, 0x9FA6)]


def parts_of(characters: Sequence[str], held_out: int = HELD_OUT) -> Parts:
    """Draw two parts of ``held_out`` characters each; all others train, in the order of the draw."""
    order = np.random.default_rng(0).permutation(len(characters))
    dev, test, train = ([characters[place] for place in part] for part in np.split(order, [held_out, 2 * held_out]))
    return Parts(dev, test, train)


def find_fonts(folders: Sequence[Path]) -> dict[str, Path]:
    """The files of ``FONTS`` that lie in or below the folders, in the order of ``FONTS``; reports those that are missing.

    Raises:
        InputError: fewer than ``MIN_FONTS``, or none for queries.
    """
    files = {path.name: path for folder in reversed(folders) for path in sorted(folder.rglob("*.tt[cf]"), reverse=True)}
    found = {face: files[face.partition(":")[0]] for face in FONTS if face.partition(":")[0] in files}
    packages = " ".join(sorted({package for face, package in FONTS.items() if face not in found}))
    what, remedy = f"{len(found)} of {len(FONTS)} fonts", f"apt-get install --no-install-recommends {packages}"
    if len(found) < MIN_FONTS or not found.keys() & set(QUERIES):
        needed = f"only {what}; at least {MIN_FONTS} are needed, one of them for queries"
        raise InputError(needed, " ".join(map(str, folders)), f"{remedy}, or give their folder by --fonts")
    if packages:
        print(f"{what} found; for the others: {remedy}", file=sys.stderr)
    return found


def picture(font: ImageFont.FreeTypeFont, character: str, size: int) -> bytes:
    """Grey pixels [size, size] of a character, black on white: its advance in the middle from left to right, its ink from top to
    bottom, as fonts differ in where their lines are."""
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (size, size), 255)
    corner = (size - left - right) // 2, (size - top - bottom) // 2
    ImageDraw.Draw(image).text(corner, character, fill=0, font=font)
    return image.tobytes()


def glyphs_of(path: Path, face: int, characters: Sequence[str], size: int) -> dict[str, bytes]:
    """Render characters in a face of a font's file: a PNG [size, size] in grey for each that the font has.

    What a font does not have shows as blank, as its picture for missing glyphs, or as one picture for many characters. A font's
    own table of characters would not do: some lead to blank glyphs.

    Raises:
        InputError: the file is not a font, or has no such face.
    """
    try:
        font = ImageFont.truetype(path, round(EM * size), index=face, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise InputError(f"a font that cannot be read ({error})", str(path), "install it again, or remove it") from error
    pictures = {character: picture(font, character, size) for character in characters}
    missing = {bytes([255]) * size**2, picture(font, NO_CHARACTER, size)}
    missing |= {pixels for pixels, count in Counter(pictures.values()).items() if count >= PLACEHOLDER}
    return {character: png(pixels, size) for character, pixels in pictures.items() if pixels not in missing}


def png(pixels: bytes, size: int) -> bytes:
    """Encode grey pixels [size, size]."""
    return cv2.imencode(".png", np.frombuffer(pixels, np.uint8).reshape(size, size))[1].tobytes()


def listed(
    images: Mapping[str, Mapping[str, bytes]], evaluated: Set[str], trained: Set[str], size: int
) -> tuple[Archive, Listing]:
    """The set as an archive in memory and its listing. ``images``: PNG files by face and character."""
    files: dict[str, bytes] = {}
    samples = []
    for face, pictures in images.items():
        camera = face.partition(".")[0]
        for character, data in pictures.items():
            if character in trained or character in evaluated:
                split = "train" if character in trained else "query" if face in QUERIES else "gallery"
                name = f"{clean(character)}/{camera}.png"
                files[name] = data
                samples.append(Sample(split, clean(character), camera, name))
    archive = Archive("glyphs", {name: len(files[name]) for name in sorted(files)}, files.__getitem__)
    return archive, Listing(samples, (size, size), mirror=False, splits_by=f"a fixed draw of {len(evaluated):,} characters")


def main(options: Glyphs) -> None:
    """Render all characters, also those that are not used, so that what counts as missing is the same in all sets; and pack."""
    found = find_fonts(options.fonts)
    characters = kanji() if options.set == "kanji" else unified()
    images = {}
    for face, path in found.items():
        images[face] = glyphs_of(path, int(face.partition(":")[2] or 0), characters, options.size)
        print(f"{face}: {len(images[face]):,} of {len(characters):,} characters", file=sys.stderr)
    parts = parts_of(characters)
    evaluated = parts.dev if options.held_out == "dev" else parts.test
    archive, listing = listed(images, set(evaluated), set(parts.train[: options.characters]), options.size)
    source = f"{options.set}-{options.held_out}"
    pack_listing("glyphs", source, archive, listing, options.destination, overwrite=options.overwrite, quiet=False)


if __name__ == "__main__":
    run_main(lambda: main(parse(Glyphs, "python -m benchmarks.glyphs")))
