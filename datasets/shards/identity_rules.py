"""Finds the identity of each image in shards of other tools: in its .cls, in a field of its .json, or in its key."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from datasets.errors import InputError
from datasets.shards.locality import MAX_BLOCK
from datasets.shards.tar_reader import Group, TarReader
from datasets.splits import checked_split
from datasets.text_files import json_of, text_of

MAX_LABEL_BYTES = {"cls": 64 << 10, "json": 16 << 20}  # bytes of a label
LARGEST_BLOCK = 256 << 20
GIVE = "leave the sample out, or choose another --identity"
IdentityFrom = Literal["auto", "key", "cls", "json"]


@dataclass(frozen=True)
class Rules:
    """Where shards of other tools hold the identities, cameras and splits."""

    identity: IdentityFrom = "auto"
    """Where the identity is: the sample's key, its .cls, or a field of its .json. auto: what the first sample has, in the order
    .cls, field, key; it is then an error if some samples have a label and others have none."""
    field: str = "pid"
    """The .json field that names the identity."""
    key_pattern: str = r"(?P<identity>.+)/[^/]+"
    """Regular expression for the whole key; its group (?P<identity>...) is the identity, (?P<camera>...) the camera."""
    camera_field: str = ""
    """The .json field that names the camera."""
    split: str = ""
    """The split of all shards. Empty: from a word in the name or folders of each shard (train, val, validation, dev, test, query,
    gallery), else train."""
    market_ids: bool = False
    """Identities -1 and 0 are Market-1501's junk and distractors, not people."""
    max_block: int = MAX_BLOCK
    """Largest block in bytes: images of an identity that are read together."""

    def __post_init__(self) -> None:
        if self.split:
            checked_split(self.split, "--split")
        if not 1 <= self.max_block <= LARGEST_BLOCK:
            raise InputError(f"--max-block is {self.max_block}", remedy=f"give 1 to {LARGEST_BLOCK} bytes")
        try:
            if "identity" not in re.compile(self.key_pattern).groupindex:
                raise InputError("--key-pattern has no group (?P<identity>...)", self.key_pattern)
        except re.error as error:
            raise InputError(f"--key-pattern is no regular expression ({error})", self.key_pattern) from error


class IdentityReader:
    """Reads the identity of each sample. With ``auto`` the first sample decides, for the whole set, where the identity is."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.by: IdentityFrom = rules.identity
        self._first = ""  # the sample that decided
        self._orphan = ""  # a label without an image

    @property
    def named_by(self) -> str:
        """Where the identities are read from, in words."""
        return {"cls": "each sample's .cls", "json": f"the field '{self.rules.field}' of each .json"}.get(self.by, "each key")

    def of(self, group: Group, reader: TarReader) -> tuple[str, str]:
        """Return the identity and camera of a sample that has an image; "" for an unknown camera.

        Raises:
            InputError: the sample has no identity, or has it elsewhere than the first sample.
        """
        labels = _labels_of(group, reader)
        at = labels.at
        if self.rules.identity == "auto":
            self._decide(labels, group.name, at)
        camera = ""
        if self.by == "key":
            named = re.fullmatch(self.rules.key_pattern, group.key)
            if named is None:
                remedy = "give --key-pattern, or --identity cls or json"
                raise InputError(f"the key does not match {self.rules.key_pattern}", at, remedy)
            identity, camera = named["identity"] or "", named.groupdict().get("camera") or ""
        else:
            identity = labels.cls() if self.by == "cls" else labels.field(self.rules.field)
        if self.rules.camera_field:
            camera = labels.field(self.rules.camera_field)
        if not identity.strip():
            raise InputError("the identity is empty", at, GIVE)
        return (f"id-{identity}" if identity in ("0", "-1") and not self.rules.market_ids else identity), camera

    def note_imageless(self, group: Group, reader: TarReader) -> None:
        """Remember a label without an image: in a set with labels, identities must not come from keys."""
        if self.rules.identity == "auto" and not self._orphan and _labels_of(group, reader).best(self.rules.field) != "key":
            self._orphan = f"{group.name} in {reader.where}"

    def check_orphans(self) -> None:
        """Raise InputError if identities were read from keys although there are labels."""
        if self._orphan and self.rules.identity == "auto" and self.by == "key":
            what = f"a label lies apart from the images, as {self._first} has none"
            raise InputError(what, self._orphan, "give label and image the same name but for the ending, or give --identity key")

    def _decide(self, labels: "Labels", name: str, at: str) -> None:
        best = labels.best(self.rules.field)
        if self.by == "auto":
            self.by, self._first = best, name
        elif self.by == "key" and best != "key":
            raise InputError(f"{self._first} has no label and {name} has a .{best}", at, "label all of them, or give --identity")
        elif self.by != "key" and not labels.has(self.by, self.rules.field):
            what = f"{self._first} has a .{self.by} that names the identity, and {name} has none"
            raise InputError(what, at, "label it or leave it out, or give --identity")


class Labels:
    """The labels of one sample, read on demand.

    ``key``, ``where``, ``at``: the sample's key, its shard's URL, and where it lies, for messages. ``sizes``: the bytes of each
    of its members, by ending; ``read`` returns a member.
    """

    def __init__(self, key: str, where: str, at: str, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> None:
        self.key, self.where, self.at, self.sizes, self.read = key, where, at, sizes, read
        self._json: Any = None

    def best(self, field: str) -> Literal["cls", "json", "key"]:
        """Return where to read its identity: "cls", else "json", else "key"."""
        return "cls" if self.has("cls", field) else "json" if self.has("json", field) else "key"

    def has(self, ending: str, field: str) -> bool:
        """Whether it has this label; of a .json, with this field."""
        return ending in self.sizes and (ending == "cls" or field in self._object())

    def cls(self) -> str:
        """Return the sample's identity as its ``.cls`` member in the shard has it."""
        return text_of(self._bytes("cls"), self._place("cls")).strip()

    def field(self, name: str) -> str:
        """Return a field of the .json, as text."""
        at, remedy = self._place("json"), "give --field or --camera-field"
        value = self._object().get(name) if "json" in self.sizes else self._bytes("json")
        if value is None:
            raise InputError(f"the sample's .json has no field '{name}'", at, remedy)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(f"the .json field '{name}' is neither a number nor a text", at, remedy)
        return str(value)

    def _place(self, ending: str) -> str:
        return f"{self.key}.{ending} in {self.where}"

    def _object(self) -> dict[str, Any]:
        if self._json is None:
            self._json = json_of(self._bytes("json"), self._place("json"), "correct it, or give --identity")
        return self._json if isinstance(self._json, dict) else {}

    def _bytes(self, ending: str) -> bytes:
        if ending not in self.sizes:
            raise InputError(f"the sample has no .{ending}", self.at, f"it has: {', '.join(self.sizes)}; give --identity")
        if self.sizes[ending] > MAX_LABEL_BYTES[ending]:
            what = f"a label of {self.sizes[ending]:,} bytes, of which {MAX_LABEL_BYTES[ending]:,} are read at most"
            raise InputError(what, self._place(ending), "is it one? Else give --identity")
        return self.read(ending)


def _labels_of(group: Group, reader: TarReader) -> Labels:
    """The labels of a sample that lies in what the reader keeps."""

    def read(ending: str) -> bytes:
        offset, size = group.members[ending]
        return reader.look(offset, offset + size)

    sizes = {ending: size for ending, (_, size) in group.members.items()}
    return Labels(group.key, reader.where, f"{group.name} in {reader.where} at byte {group.start}", sizes, read)
