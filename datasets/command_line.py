"""The command line, made from frozen dataclasses: each field is an option, its docstring the help text.

A config within a config gives ``--config.option``; a field of type ``bool`` or ``bool | None`` gives ``--x`` and ``--no-x``;
``bool | Literal["word"]`` also ``--x word``.
Usage errors are one line on stderr, and exit code 2. It needs the standard library alone, so that `cluster` may use it, too.

Tried before: tyro has no public hook for usage errors and help texts (1.0), and on argparse this module is longer, since argparse
takes -1e-3 for an option, refuses `--size=3 4`, and reports a missing option before a misspelt one (325 lines; here 305).
"""

import ast
import inspect
import re
import shutil
import sys
import textwrap
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from datasets.errors import printable

T = TypeVar("T")

POSITIONAL = {"positional": True}  # metadata of a field that is given by its place on the command line
FLAT = {"flat": True}  # metadata of a field that is a config: its options stand among the others, without its name
FEW = 16  # options of a command that are shown together

OPTION = re.compile(r"--|-(?!inf|nan)[a-zA-Z]")  # how a word begins that is not a value; -1 is a value
WORDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}


@dataclass(frozen=True)
class Option:
    """One option, or one positional argument, of a command."""

    path: tuple[str, ...]  # the fields that lead to the value
    name: str  # with dots and hyphens, such as optim.sync-batch-norm
    kind: Any  # the type of the value, None left out
    optional: bool  # the value may be None
    default: Any  # MISSING: the option is required
    owners: tuple[type[Any], ...]  # the dataclasses that have these fields
    metadata: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()  # of a flag: the values that may follow it

    @property
    def flag(self) -> bool:
        """Whether it is given as --x or --no-x, without a value or with one of ``words``."""
        return self.kind is bool

    @property
    def positional(self) -> bool:
        """Whether it is given by its place."""
        return bool(self.metadata.get("positional"))

    @property
    def spelled(self) -> str:
        """As the user writes it: --optim.lr, or SOURCE."""
        return self.name.upper() if self.positional else f"--{self.name}"

    @property
    def refused(self) -> str:
        """How a flag is turned off: --no-resume, --cluster.no-gpu."""
        group, dot, leaf = self.name.rpartition(".")
        return f"--{group}{dot}no-{leaf}"

    @property
    def many(self) -> bool:
        """Whether it takes any number of values."""
        return get_origin(self.kind) is tuple and get_args(self.kind)[-1] is Ellipsis

    @property
    def items(self) -> tuple[Any, ...]:
        """The types of its values; of any number of values: the one type."""
        kinds = get_args(self.kind) if get_origin(self.kind) is tuple else (self.kind,)
        return kinds[:1] if self.many else kinds

    @property
    def wanted(self) -> str:
        """What to give, in words."""
        words = " and ".join(dict.fromkeys(_in_words(kind) for kind in self.items))
        return f"{len(self.items)} values, each {words}" if len(self.items) > 1 else words

    @property
    def usage(self) -> str:
        """The option with placeholders for its values, as in ``--loader.size INT INT``."""
        if self.flag:
            return " ".join([self.spelled, *(f"[{word}]" for word in self.words)]) + f", {self.refused}"
        if self.positional:
            return self.spelled
        values = " ".join(_placeholder(kind) for kind in self.items)
        return f"{self.spelled} {f'[{values} ...]' if self.many else values}"

    def value(self, texts: list[str]) -> Any:
        """The value of texts from the command line; ends the command with an error when they are not of its type."""
        if self.optional and texts == ["None"]:
            return None
        if not self.many and len(texts) < len(self.items):
            fail(f"{self.spelled} lacks {'values' if texts else 'its value'}: give {self.wanted}")
        values = []
        for kind, text in zip(self.items * len(texts) if self.many else self.items, texts, strict=True):
            try:
                values.append(_convert(kind, text))
            except (ValueError, LookupError):
                fail(f"{self.spelled} is '{text}': give {self.wanted}")
        return tuple(values) if get_origin(self.kind) is tuple else values[0]


def _convert(kind: Any, text: str) -> Any:
    if get_origin(kind) is Annotated:
        return kind.__metadata__[1](text)
    return {str(choice): choice for choice in get_args(kind)}[text] if get_origin(kind) is Literal else kind(text)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return str(kind.__metadata__[0]) if get_origin(kind) is Annotated else WORDS[kind]


def _placeholder(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    return (kind.__metadata__[0].split(",")[0] if get_origin(kind) is Annotated else str(kind.__name__)).upper()


def fail(what: str) -> NoReturn:
    """End the command: one line on stderr, exit code 2."""
    print(f"error: {printable(what)}", file=sys.stderr)
    sys.exit(2)


def parse(kind: type[T], program: str, arguments: Sequence[str] | None = None, *, default: T | None = None, about: str = "") -> T:
    """The command's options as an object of a dataclass; ends the process after --help (0) and after a usage error (2).

    ``kind``: the dataclass. Types of fields: int, float, str, Path, Literal, bool, tuples of them, each also with None; and
    ``Annotated[int, "bytes, such as 64MiB", converter]``. Its attribute ``first``, if any, names the options that --help shows
    (--help-all shows all), and its attribute ``sets`` those that the command does not take.
    ``arguments``: the words of the command line, by default those of `sys.argv`.
    ``default``: an object whose values the options default to.
    ``about``: what the help says first, by default the dataclass's docstring.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    sets = getattr(kind, "sets", ())
    options = [option for option in options_of(kind, default) if option.name.replace("-", "_") not in sets]
    if {"-h", "--help", "--help-all"} & set(words):
        print(help_text(kind, program, options, about, everything="--help-all" in words))
        sys.exit(0)
    given = _read(words, options, program)
    missing = [option.spelled for option in options if option.default is MISSING and option.path not in given]
    if missing:
        fail(f"missing {', '.join(missing)}; see {program} --help")
    return _build(kind, default, given)


def take_verb(program: str, about: str, verbs: Mapping[str, type[Any]], arguments: list[str], default: str = "") -> str:
    """Remove the verb from the arguments and return it; ``default``, if any, where they begin with an option or are empty.

    Ends the process after --help (0), and when there is no such verb (2), with the nearest one.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        lines = [f"  {name:10} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in verbs.items()]
        print(f"usage: {program} {'[VERB]' if default else 'VERB'} [OPTIONS]\n\n{about.strip()}\n")
        print(f"verbs ({program} VERB --help shows the options of a verb):", *lines, sep="\n")
        sys.exit(0)
    if default and (not arguments or arguments[0].startswith("-")):
        return default
    verb = arguments.pop(0) if arguments else ""
    if verb not in verbs:
        near = get_close_matches(verb, verbs, 1)
        remedy = f", did you mean '{near[0]}'?" if near else f": give {', '.join(verbs)}"
        fail((f"unknown verb '{verb}'" if verb else "missing verb") + remedy)
    return verb


def options_of(
    kind: type[Any], default: Any = None, path: tuple[str, ...] = (), prefix: str = "", owners: tuple[type[Any], ...] = ()
) -> Iterator[Option]:
    """The options of a dataclass and of those within it, in the order of their fields."""
    hints = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint, here = hints[each.name], (*path, each.name)
        value = getattr(default, each.name) if default is not None else _default(each)
        if is_dataclass(hint):
            inner = prefix if each.metadata.get("flat") else f"{prefix}{each.name}."
            yield from options_of(hint, value, here, inner, (*owners, kind))  # type: ignore[arg-type]  # no instance
        else:
            kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
            optional, (hint, *others) = type(None) in kinds, [k for k in kinds if k is not type(None)]
            words = tuple(word for other in others for word in get_args(other))  # of bool | Literal["auto"]
            name = f"{prefix}{each.name}".replace("_", "-")
            yield Option(here, name, hint, optional, value, (*owners, kind), each.metadata, words)


def _default(each: Any) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _read(words: Iterable[str], options: Sequence[Option], program: str) -> dict[tuple[str, ...], Any]:
    """The values that the words of a command line give, by the options' paths."""
    named = {option.spelled: option for option in options if not option.positional}
    refused = {option.refused: option for option in options if option.flag}
    places, rest = deque(option for option in options if option.positional), deque(words)
    given: dict[tuple[str, ...], Any] = {}
    while rest:
        word = rest.popleft()
        if not OPTION.match(word):
            if not places:
                fail(f"unexpected argument '{word}'; see {program} --help")
            option = places.popleft()
            given[option.path] = option.value([word])
            continue
        spelled, equals, attached = word.partition("=")
        spelled = spelled.replace("_", "-")
        found = named.get(spelled) or refused.get(spelled)
        if found is None:
            unknown(spelled, [*named, *refused], program)
        texts = [attached] if equals else []
        if found.flag:
            given[found.path] = _flag(found, spelled, texts, rest)
            continue
        while rest and not OPTION.match(rest[0]) and (found.many or len(texts) < len(found.items)):
            if found.optional and texts == ["None"]:
                break
            texts.append(rest.popleft())
        given[found.path] = found.value(texts)
    return given


def _flag(option: Option, spelled: str, texts: list[str], rest: deque[str]) -> bool | str:
    """The value of a flag; ``texts``: what was attached to it by =, ``rest``: the words that follow, of which it may take one."""
    words = option.words if spelled == option.spelled else ()
    if texts and texts[0] in words:
        return texts[0]
    if texts or (rest and rest[0] in ("True", "False", "None")):
        but = f" but {' or '.join(words)}" if words else ""
        fail(f"{spelled} takes no value{but}: give {option.spelled} or {option.refused}")
    return rest.popleft() if rest and rest[0] in words else spelled == option.spelled


def unknown(spelled: str, names: Sequence[str], program: str) -> NoReturn:
    """End the command, since there is no such option; names the nearest one of ``names``."""
    leaf = spelled.lstrip("-")
    near = [name for name in names if name.rpartition(".")[2] == leaf] or get_close_matches(spelled, names, 1)
    fail(f"unknown option {spelled}" + (f": did you mean {' or '.join(near)}?" if near else f"; see {program} --help-all"))


def _build(kind: type[T], default: T | None, given: Mapping[tuple[str, ...], Any]) -> T:
    """An object with these values, all others as in ``default`` or as the fields have it."""
    changes: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]  # a dataclass
        inner = {path[1:]: value for path, value in given.items() if path[0] == each.name}
        if () in inner:
            changes[each.name] = inner[()]
        elif inner:
            base = getattr(default, each.name) if default is not None else _default(each)
            changes[each.name] = _build(type(base), base, inner)
    return kind(**changes) if default is None else replace(default, **changes)  # type: ignore[type-var]


def help_text(kind: type[Any], program: str, options: Sequence[Option], about: str = "", *, everything: bool = False) -> str:
    """The help of a command: the options that matter first, or all of them in groups; lines fold at the terminal's width."""
    first = _first(kind)
    short = not everything and len(options) > FEW and first
    shown = [option for name in first for option in options if option.name == name] if short else options
    shown = sorted(shown, key=lambda option: (not option.positional, not short and "." in option.name))
    lines = [" ".join(["usage:", program, "[OPTIONS]", *(option.spelled for option in shown if option.positional)]), ""]
    lines += [about.strip() or inspect.cleandoc(kind.__doc__ or "")]
    for group, members in groupby(shown, lambda option: "" if short else option.name.rpartition(".")[0]):
        listed = list(members)
        lines += ["", *([f"{group}: {_about_group(listed[0])}"] if group else [])]
        lines += [line for option in listed for line in _entry(option)]
    return "\n".join([*lines, *(["", f"all {len(options)} options: {program} --help-all"] if short else [])])


def _about_group(option: Option) -> str:
    """What the options beside this one are: the docstring of the field that holds them, else of their class."""
    field_doc = docs_of(option.owners[-2]).get(option.path[-2])  # type: ignore[arg-type]  # a class is hashable
    text = field_doc or option.owners[-1].__doc__ or ""
    return text.strip().splitlines()[0]


def _first(kind: type[Any]) -> list[str]:
    """The options that a command's --help shows: those that its class names, and the classes of its flat fields."""
    hints = get_type_hints(kind)
    flat = [name for each in fields(kind) if each.metadata.get("flat") for name in _first(hints[each.name])]
    return [name.replace("_", "-") for name in (*getattr(kind, "first", ()), *flat)]


def _entry(option: Option, indent: int = 26) -> list[str]:
    """The lines of one option in a help text."""
    default = option.default
    values = default if isinstance(default, tuple) else (default,)
    note = "(required)" if default is MISSING else f"(default:\N{NO-BREAK SPACE}{' '.join(map(str, values))})"
    doc = docs_of(option.owners[-1]).get(option.path[-1])  # type: ignore[arg-type]  # a class is hashable
    text = doc or option.metadata.get("help", "")
    text = " ".join([*text.split(), *([] if default in ("", ()) or option.positional else [note])])
    width = max(40, shutil.get_terminal_size().columns - 1)
    folded = textwrap.wrap(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False)
    lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in folded]
    head = f"  {option.usage}"
    if lines and len(head) < indent - 1:
        return [head.ljust(indent) + lines[0][indent:], *lines[1:]]
    return [head, *lines]


@cache
def docs_of(kind: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and of its bases, by the fields' names, read from the source."""
    found: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(kind.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]  # a class
        for node, after in pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(node.target, ast.Name):
                found[node.target.id] = str(ast.literal_eval(after.value))
    return found
