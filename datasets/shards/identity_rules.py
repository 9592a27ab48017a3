"""Who is on an image of a shard that somebody else wrote: told by its .cls, by a field of its .json, or by its key."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from datasets.errors import InputError
from datasets.shards.locality import MAX_BLOCK
from datasets.shards.tar_reader import Group, TarReader
from datasets.splits import checked_split
from datasets.texts import json_of, text_of

MAX_LABEL_BYTES = {"cls": 64 << 10, "json": 16 << 20}  # bytes of a label
LARGEST_BLOCK = 256 << 20
GIVE = "leave the sample out, or name the identity otherwise (--identity)"
IdentityFrom = Literal["auto", "key", "cls", "json"]


@dataclass(frozen=True)
class Rules:
    """Where foreign shards say who is on an image."""

    identity: IdentityFrom = "auto"
    """What names the identity: the sample's key, its .cls, or a field of its .json. auto: .cls if the first sample has one, else
    the field if it has that, else the key; samples of which one has a label and another has none are an error."""
    field: str = "pid"
    """The .json field that names the identity."""
    key_pattern: str = r"(?P<identity>.+)/[^/]+"
    """What of a key is the identity, and perhaps the camera: groups of a regular expression for the whole key."""
    camera_field: str = ""
    """The .json field that names the camera."""
    split: str = ""
    """The split of all shards; else a word in a shard's name or folders tells it (train, val, validation, dev, test, query,
    gallery), or it is train."""
    market_ids: bool = False
    """Identities -1 and 0 are Market-1501's junk and distractors, not people."""
    max_block: int = MAX_BLOCK
    """Bytes of an identity that are read at once, at most."""

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
    """Tells who is on a sample's image. With ``auto`` the first sample decides for all of the set what tells it."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.by: IdentityFrom = rules.identity
        self._first = ""  # the sample that decided
        self._orphan = ""  # a label that belongs to no image

    @property
    def named_by(self) -> str:
        """What tells the identities, in words."""
        return {"cls": "each sample's .cls", "json": f"the field '{self.rules.field}' of each .json"}.get(self.by, "each key")

    def of(self, group: Group, reader: TarReader) -> tuple[str, str]:
        """Identity and camera of a sample with an image; "" for a camera that is not told.

        Raises:
            InputError: the sample does not tell, or tells otherwise than the first one.
        """
        at, labels = f"{group.name} in {reader.where} at byte {group.start}", Labels(group, reader)
        if self.rules.identity == "auto":
            self._decide(labels, group.name, at)
        camera = ""
        if self.by == "key":
            named = re.fullmatch(self.rules.key_pattern, group.key)
            if named is None:
                remedy = "give --key-pattern, or --identity cls or json"
                raise InputError(f"the key does not tell the identity by {self.rules.key_pattern}", at, remedy)
            identity, camera = named["identity"] or "", named.groupdict().get("camera") or ""
        else:
            identity = labels.cls() if self.by == "cls" else labels.field(self.rules.field)
        if self.rules.camera_field:
            camera = labels.field(self.rules.camera_field)
        if not identity.strip():
            raise InputError("the identity is empty", at, GIVE)
        return (f"id-{identity}" if identity in ("0", "-1") and not self.rules.market_ids else identity), camera

    def note_imageless(self, group: Group, reader: TarReader) -> None:
        """Remember a label without an image: in a set with labels no identity is made from a key."""
        if self.rules.identity == "auto" and not self._orphan and Labels(group, reader).best(self.rules.field) != "key":
            self._orphan = f"{group.name} in {reader.where}"

    def check_orphans(self) -> None:
        """Raises InputError when identities were read from keys and there are labels."""
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
    """The labels of one sample, read when they are asked for."""

    def __init__(self, group: Group, reader: TarReader) -> None:
        self.group, self.reader = group, reader
        self._json: Any = None

    def best(self, field: str) -> Literal["cls", "json", "key"]:
        """What names its identity best: "key" where no label does."""
        return "cls" if self.has("cls", field) else "json" if self.has("json", field) else "key"

    def has(self, ending: str, field: str) -> bool:
        """Whether there is such a label."""
        return ending in self.group.members and (ending == "cls" or field in self._object())

    def cls(self) -> str:
        """The text of the .cls."""
        return text_of(self._bytes("cls"), self._place("cls")).strip()

    def field(self, name: str) -> str:
        """A field of the .json, as text."""
        at, remedy = self._place("json"), "give --field or --camera-field"
        value = self._object().get(name) if "json" in self.group.members else self._bytes("json")
        if value is None:
            raise InputError(f"the sample's .json has no field '{name}'", at, remedy)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(f"the .json field '{name}' is neither a number nor a text", at, remedy)
        return str(value)

    def _place(self, ending: str) -> str:
        return f"{self.group.key}.{ending} in {self.reader.where}"

    def _object(self) -> dict[str, Any]:
        if self._json is None:
            self._json = json_of(self._bytes("json"), self._place("json"), "mend it, or give --identity")
        return self._json if isinstance(self._json, dict) else {}

    def _bytes(self, ending: str) -> bytes:
        if ending not in self.group.members:
            has, at = ", ".join(self.group.members), f"{self.group.name} in {self.reader.where} at byte {self.group.start}"
            raise InputError(f"the sample has no .{ending}", at, f"it has: {has}; give --identity")
        offset, size = self.group.members[ending]
        if size > MAX_LABEL_BYTES[ending]:
            what = f"a label of {size:,} bytes, of which {MAX_LABEL_BYTES[ending]:,} are read at most"
            raise InputError(what, self._place(ending), "is it one? Else give --identity")
        return self.reader.look(offset, offset + size)
