"""One frozen, validated config from defaults, a YAML preset and flags (`--adapter.rank 8`); flags take precedence.

All mistakes are reported at once, each with its flag or its `file.yaml:line`.
"""

import argparse
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from data.errors import InputError, raise_all, suggest

HELP = "See --help."
BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
POSITIONAL: Any = {"positional": True}  # marks a field that is given without a flag
MAX_DEFAULT = 70  # characters of a default that --help prints


class Options(BaseModel):
    """Parent of every section of a config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Config = TypeVar("Config", bound=Options)
Preset = Path | Callable[[dict[str, Any]], Path] | None


def positional(default: Any = ...) -> Any:
    """A field that is given without a flag: `source: Path = positional()`."""
    return Field(default, json_schema_extra=POSITIONAL)


class Flag:
    """A field of a config on the command line. kinds: the members of a union of sections that have it."""

    def __init__(self, path: str, info: FieldInfo, section: str, kinds: list[str]) -> None:
        self.path, self.info, self.section, self.kinds = path, info, section, kinds  # section: its help text
        self.atoms = atoms(info.annotation)
        self.is_bool = set(self.atoms) - {NoneType} == {bool}
        self.is_list = get_origin(info.annotation) in (list, tuple)
        self.is_positional = info.json_schema_extra == POSITIONAL


def parse(
    model: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str = "",
    preset: Preset = None,
    aliases: Mapping[str, str] | None = None,
    hints: Path | None = None,
) -> Config:
    """Read flags over a preset over the defaults of `model`; `--help` prints and exits 0.

    preset: the YAML file used without `--config FILE` (only if the model has a field `config`), or a function that
    chooses it from the typed flags, by dotted field name. aliases: other spellings, e.g. {"-n": "--negative-
    prompt"}. hints: a YAML file, flags of other programs -> what to use instead. Raises InputError naming every unknown
    or invalid flag and YAML key.
    """
    flags = find_flags(model)
    typed = read_flags(sys.argv[1:] if argv is None else argv, flags, aliases or {}, prog, hints)
    wants_help = typed.pop("-h", False)
    values, lines = read_preset(typed, preset) if "config" in flags else ({}, {})
    merge(model, values, typed)
    if wants_help:
        print_help(model, values, flags, prog, description)
        sys.exit(0)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise_all([explain_error(model, detail, typed, lines) for detail in error.errors()])
        raise AssertionError("a validation error has at least one detail") from error


# ---- fields and flags


def walk_fields(model: type[BaseModel], prefix: str = "", section: str = "", kind: str = "") -> Iterator[Flag]:
    """Every field of a config, nested sections and all members of unions included."""
    for name, info in model.model_fields.items():
        members = section_types(info.annotation)
        if not members:
            yield Flag(f"{prefix}{name}", info, section, [kind] if kind else [])
        for member in members:
            own = str(member.model_fields["kind"].default) if len(members) > 1 else ""
            yield from walk_fields(member, f"{prefix}{name}.", member.__doc__ or "", own)


def find_flags(model: type[BaseModel]) -> dict[str, Flag]:
    """The flags of a config by dotted field name; a field that several kinds of a section have is one flag."""
    flags: dict[str, Flag] = {}
    for flag in walk_fields(model):
        if flags.setdefault(flag.path, flag) is not flag:
            flags[flag.path].kinds.extend(flag.kinds)
    return flags


def section_types(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation: itself, or the members of a union."""
    return [atom for atom in atoms(annotation) if isinstance(atom, type) and issubclass(atom, BaseModel)]


def atoms(annotation: Any) -> list[Any]:
    """The types and literal values of an annotation: `list[int] | Literal["auto"] | None` -> int, "auto", NoneType."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    members = [member for member in get_args(annotation) if member is not ...]
    return [atom for member in members for atom in atoms(member)] if members else [annotation]


def flag_of(path: str) -> str:
    """adapter.target_modules -> --adapter.target-modules."""
    return "--" + path.replace("_", "-")


def field_of(flag: str) -> str:
    """--adapter.target-modules=... -> adapter.target_modules."""
    return flag.partition("=")[0].removeprefix("--").replace("-", "_")


def read_flags(
    argv: Sequence[str], flags: Mapping[str, Flag], aliases: Mapping[str, str], prog: str, hints: Path | None = None
) -> dict[str, Any]:
    """The values as typed, by dotted field name; "-h" if help is wanted. Raises InputError for every bad flag.

    Underscores count as dashes; a repeated list flag adds an item; `--strict true` and `--no-strict` set a boolean.
    """
    names = {flag_of(path): (path, True if flag.is_bool else None) for path, flag in flags.items()}
    names |= {flag_of(f"no_{path}"): (path, False) for path, flag in flags.items() if flag.is_bool}
    names |= {alias: names[flag] for alias, flag in aliases.items() if flag in names}
    arguments = [path for path, flag in flags.items() if flag.is_positional]
    typed: dict[str, Any] = {}
    errors: list[InputError] = []
    tokens = list(reversed(argv))
    while tokens:
        token = tokens.pop()
        name = spelling(token, names)
        if name in ("-h", "--help"):
            typed["-h"] = True
        elif name in names:
            path, alone = names[name]
            try:
                value = take_value(token, alone, tokens, names)
            except InputError as error:
                errors.append(error)
                continue
            if value == "None" and NoneType in flags[path].atoms and not flags[path].is_list:
                value = None
            typed[path] = [*typed.get(path, []), value] if flags[path].is_list else value
        elif name.startswith("-") and name != "-":
            errors.append(unknown_flag(name, names, hints))
            if tokens and not tokens[-1].startswith("-"):
                tokens.pop()  # its value
        elif arguments:
            typed[arguments.pop(0)] = token
        else:
            errors.append(InputError(f"unexpected argument {token!r}", where=prog, fix=HELP))
    raise_all(errors)
    return typed


def unknown_flag(name: str, names: Mapping[str, Any], hints: Path | None) -> InputError:
    """hints: a YAML file, flag of another program -> what to use instead."""
    known = yaml.safe_load(hints.read_text(encoding="utf-8")) if hints else {}
    if name in known:
        return InputError("is a flag of another program", where=name, fix=f"Here: {known[name]}.")
    return InputError(f"unknown flag{suggest(name, names)}", where=name, fix=HELP)


def spelling(token: str, names: Mapping[str, Any]) -> str:
    """The flag of a token, without its value and with dashes for underscores."""
    name = token.partition("=")[0]
    return name if name in names or not name.startswith("--") else name.replace("_", "-")


def take_value(token: str, alone: bool | None, tokens: list[str], names: Mapping[str, Any]) -> Any:
    """The value of a flag: after its `=`, else the next token, which is taken off; alone: that of a bare boolean."""
    _, equals, value = token.partition("=")
    if equals:
        return value if alone is None else BOOLEANS.get(value.lower(), value)
    if alone is None:
        if not tokens or spelling(tokens[-1], names) in names:
            raise InputError("expected a value", where=spelling(token, names), fix=HELP)
        return tokens.pop()
    return BOOLEANS[tokens.pop().lower()] if alone and tokens and tokens[-1].lower() in BOOLEANS else alone


# ---- the preset


def read_preset(typed: dict[str, Any], preset: Preset) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of `--config`, or of the command's own preset, and the `file:line` of each key; or InputError."""
    own = preset if isinstance(preset, Path) or preset is None or "config" in typed else preset(typed)
    path = Path(typed["config"]) if "config" in typed else own
    if path is None:
        return {}, {}
    assert isinstance(path, Path)
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except OSError as error:
        folder = path.parent if path.parent != Path() or not isinstance(own, Path) else own.parent
        allowed = ", ".join(sorted(str(relative(file)) for file in folder.glob("*.yaml"))) or None
        raise InputError(f"no such preset ({error.strerror})", where=f"--config {path}", allowed=allowed) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise InputError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=where) from None
    if not isinstance(values, dict):
        raise InputError("expected a YAML mapping", where=path, fix="Write `key: value` lines.")
    return values, dict(key_lines(root, path))


def key_lines(node: yaml.Node | None, path: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted name and `file:line` of every key of a YAML mapping; a duplicate key is an InputError."""
    seen: set[str] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, where = f"{prefix}{key.value}", f"{path}:{key.start_mark.line + 1}"
        if name in seen:
            raise InputError(f"duplicate key {name!r}", where=where, fix="Remove one of the two.")
        seen.add(name)
        yield name, where
        yield from key_lines(value, path, f"{name}.")


def merge(model: type[BaseModel], values: dict[str, Any], typed: Mapping[str, Any]) -> None:
    """Put the typed values into the preset's and name each union's kind; another kind drops the preset's fields."""
    for name, info in model.model_fields.items():
        default = getattr(info.default, "kind", None) if len(section_types(info.annotation)) > 1 else None
        section = values.setdefault(name, {}) if default is not None else None
        if isinstance(section, dict):
            section.setdefault("kind", default)
            if typed.get(f"{name}.kind", section["kind"]) != section["kind"]:
                section.clear()
    for path, value in typed.items():
        *sections, name = path.split(".")
        section = values
        for key in sections:
            section = section.setdefault(key, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):  # else the preset has no mapping there, which validation reports
            section[name] = value


# ---- errors


def explain_error(model: type[BaseModel], detail: Any, given: Container[str], lines: Mapping[str, str]) -> InputError:
    """One pydantic error as an InputError that names the flag or the YAML line."""
    flags = find_flags(model)
    path = ""  # without the tags of unions: ('adapter', 'lora', 'rank') -> 'adapter.rank'
    for part in detail["loc"]:
        kind = flags.get(f"{path}.kind")
        if kind is None or part not in kind.kinds:
            path = f"{path}.{part}" if path else str(part)
    section = path.rpartition(".")[0]
    where = flag_of(path) if path in given else lines.get(path) or lines.get(section) or flag_of(path)
    if detail["type"] == "extra_forbidden" and path in flags:
        return InputError(f"{path} does not belong to the chosen {section}.kind", where=where)
    if detail["type"] == "extra_forbidden":
        siblings = [name for name in flags if name.startswith(section)]
        return InputError(f"unknown key {path!r}{suggest(path, siblings)}", where=where, allowed=", ".join(siblings))
    if detail["type"] == "missing":
        is_positional = path in flags and flags[path].is_positional
        return InputError("is required", where=path.upper() if is_positional else where, fix=HELP)
    if detail["type"] == "union_tag_invalid":
        where = f"{where}.kind" if path in lines and f"{path}.kind" not in given else flag_of(f"{path}.kind")
        given_kind, allowed = str(detail["ctx"]["tag"]), detail["ctx"]["expected_tags"].replace("'", "")
        what = f"unknown kind {given_kind!r}{suggest(given_kind, allowed.split(', '))}"
        return InputError(what, where=where, allowed=allowed)
    if detail["type"] == "value_error":  # raised by our own validators, in words for people
        return InputError(str(detail["ctx"]["error"]), where=where if path else None)
    allowed = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ").partition(", unable")[0]
    return InputError(f"{detail['input']!r} is not allowed", where=where, allowed=allowed)


# ---- help


def print_help(model: type[Config], values: dict[str, Any], flags: Mapping[str, Flag], prog: str, text: str) -> None:
    """Print every flag with the value in force: the preset's, or the default."""
    try:
        config: Any = model.model_validate(values)
    except ValidationError:  # a required argument is missing, or a flag is wrong: the help is wanted all the more
        config = None
    arguments = [f"[{flag.path.upper()}]" for flag in flags.values() if flag.is_positional]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=" ".join(["%(prog)s", *arguments, "[options]"]),
        description=text.strip().replace("%", "%%"),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
    )
    groups: dict[str, Any] = {"": parser}
    for flag in flags.values():
        title, about = group_of(flag, flags)
        group = groups.get(title) or parser.add_argument_group(title, about.replace("%", "%%"))
        groups[title] = group
        keywords: dict[str, Any] = {"help": help_text(flag, config).replace("%", "%%"), "default": argparse.SUPPRESS}
        if flag.is_positional:
            group.add_argument(flag.path, nargs="?", metavar=flag.path.upper(), **keywords)
        elif flag.is_bool:
            group.add_argument(flag_of(flag.path), action=argparse.BooleanOptionalAction, **keywords)
        else:
            group.add_argument(flag_of(flag.path), metavar=metavar(flag), **keywords)
    parser.print_help()


def group_of(flag: Flag, flags: Mapping[str, Flag]) -> tuple[str, str]:
    """Title and text of a flag's group: `adapter`, or `adapter (--adapter.kind lora)` for what only some kinds have."""
    section, about = flag.path.rpartition(".")[0], flag.section.partition("\n")[0]
    if not flag.kinds:
        return section, about
    if len(flag.kinds) == len(flags[f"{section}.kind"].kinds):
        return section, ""
    return f"{section} (--{section}.kind {', '.join(flag.kinds)})", about if len(flag.kinds) == 1 else ""


def help_text(flag: Flag, config: Any) -> str:
    """What a field is, and the value in force unless the text says it."""
    text = " ".join((flag.info.description or "").split())
    default = None if flag.info.is_required() else flag.info.get_default(call_default_factory=True)
    value = config
    for name in flag.path.split("."):
        value = getattr(value, name, None)
    if value is None or (value == default and "default:" in text):
        value = None if "default:" in text else default
    shown = show_value(value)
    return f"{text} (default: {shown})".strip() if shown else text


def show_value(value: Any) -> str:
    """A default as --help prints it; nothing for None, the empty text and the empty list."""
    if isinstance(value, bool):
        return "on" if value else "off"
    value = relative(value) if isinstance(value, Path) else value
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
    return shown if len(shown) <= MAX_DEFAULT else f"{shown[:MAX_DEFAULT]}..."


def relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def metavar(flag: Flag) -> str:
    """FILE, FOLDER, N, X, TEXT or {a,b}; `N|{auto}` if several are allowed."""
    is_folder = "folder" in (flag.info.description or "").partition(".")[0].lower()
    names = {int: "N", float: "X", str: "TEXT", Path: "FOLDER" if is_folder else "FILE"}
    types = [atom for atom in flag.atoms if isinstance(atom, type) and atom is not NoneType]
    literals = [str(atom) for atom in flag.atoms if not isinstance(atom, type)]
    choices = flag.kinds if flag.kinds and flag.path.endswith(".kind") else literals
    words = [names.get(atom) or atom.__name__.upper() for atom in types]
    return "|".join(dict.fromkeys([*words, *(["{" + ",".join(choices) + "}"] if choices else [])]))
