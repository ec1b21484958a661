"""How defaults, a YAML preset and flags become one validated, frozen config; in that order, flags last.

Flags are the fields' dotted names with dashes (`--adapter.rank 8`). Every mistake is reported at once, with the flag or
the `file.yaml:line` it came from. pydantic-settings reads the flags; environment variables are not read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import InputError, choose, raise_all, suggest

HELP = "See --help."
STRAY = "unrecognized arguments: "  # argparse's words for what is no flag's value


class Options(BaseModel):
    """Parent of every section of a config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Config = TypeVar("Config", bound=Options)


def parse(
    model: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str = "",
    preset: Path | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Config:
    """Read flags over a preset over the defaults of `model`.

    preset: the YAML file used when no `--config FILE` is given (only if the model has a field `config`).
    aliases: other spellings of a flag, e.g. {"--cfg": "--guidance-scale", "-n": "--negative-prompt"}.
    Raises InputError naming every unknown or invalid flag and YAML key. `--help` prints and exits 0.
    """
    kinds = dict(field_types(model))
    flags = settle_switches(spell_out(sys.argv[1:] if argv is None else argv, kinds, aliases or {}), kinds)
    source = chosen_preset(flags, preset) if "config" in kinds else None
    values, lines = read_yaml(source, preset) if source else ({}, {})
    forget_other_kinds(values, flags)
    name_default_kinds(model, values)
    single = take_lists(flags, kinds, values)
    try:
        return run_cli(model, single, values, prog, description)
    except ValidationError as error:
        given = {name_of(token) for token in flags if token.startswith("--")}
        raise_all([explain(model, detail, given, lines) for detail in error.errors()])
        raise AssertionError("a validation error has at least one detail") from error


def run_cli(model: type[Config], flags: list[str], values: dict[str, Any], prog: str, description: str) -> Config:
    """Let pydantic-settings merge `flags` over `values` and validate."""
    from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
    from pydantic_settings.exceptions import SettingsError

    class FromCommandLine(BaseSettings, model):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(
            cli_prog_name=prog,
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_hide_none_type=True,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any
        ) -> tuple[Any, ...]:
            return (init_settings,)  # not the environment: a variable named SEED must not change a run

    FromCommandLine.__doc__ = description
    try:
        parsed = CliApp.run(FromCommandLine, cli_args=flags, **values)
    except SettingsError as error:
        said = str(error).removeprefix("error parsing CLI: ")
        if said.startswith(STRAY):
            raise InputError(f"no flag stands before {said.removeprefix(STRAY)!r}", where=prog, fix=HELP) from error
        flag, _, what = said.removeprefix("argument ").partition(": ")
        raise InputError(what or flag, where=flag if what else prog, fix=HELP) from error
    return model.model_validate(parsed.model_dump(exclude_unset=True))


# ---- flags


def field_types(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted field name of a config with its annotation, nested sections and all members of unions included."""
    for name, field in model.model_fields.items():
        sections = list(section_types(field.annotation))
        if not sections:
            yield f"{prefix}{name}", field.annotation
        for section in sections:
            yield from field_types(section, f"{prefix}{name}.")


def section_types(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for member in get_args(annotation):
        yield from section_types(member)


def flag_of(path: str) -> str:
    """adapter.target_modules -> --adapter.target-modules."""
    return "--" + path.replace("_", "-")


def name_of(token: str) -> str:
    """--adapter.target-modules=... -> adapter.target_modules; `--no-strict` -> strict is left to the caller."""
    return token.partition("=")[0].removeprefix("--").replace("-", "_")


def spell_out(argv: Sequence[str], kinds: Mapping[str, Any], aliases: Mapping[str, str]) -> list[str]:
    """Aliases replaced, underscores made dashes, every name checked. Raises InputError for the unknown ones."""
    known = {flag_of(path) for path in kinds} | {flag_of(f"no_{p}") for p, kind in kinds.items() if kind is bool}
    flags: list[str] = []
    unknown: list[InputError] = []
    for token in argv:
        flag, equals, value = token.partition("=")
        flag = aliases.get(flag) or aliases.get(flag.replace("_", "-"), flag)
        if not flag.startswith("--"):
            flags.append(token)
            continue
        flag = flag.replace("_", "-")
        if flag not in known and flag != "--help":
            unknown.append(InputError(f"unknown flag{suggest(flag, known)}", where=flag, fix=HELP))
        flags.append(flag + equals + value)
    raise_all(unknown)
    return flags


def settle_switches(flags: list[str], kinds: Mapping[str, Any]) -> list[str]:
    """`--strict true`, `--strict=false` as people write them: `--strict`, `--no-strict`."""
    switches = {flag_of(path): flag_of(f"no_{path}") for path, kind in kinds.items() if kind is bool}
    words = {"true": 0, "yes": 0, "false": 1, "no": 1}
    settled: list[str] = []
    for token in flags:
        flag, equals, value = token.partition("=")
        if flag in switches and equals and value.lower() in words:
            settled.append((flag, switches[flag])[words[value.lower()]])
        elif settled and settled[-1] in switches and token.lower() in words:
            settled[-1] = (settled[-1], switches[settled[-1]])[words[token.lower()]]
        else:
            settled.append(token)
    return settled


def take_lists(flags: list[str], kinds: Mapping[str, Any], values: dict[str, Any]) -> list[str]:
    """Move flags that may be repeated into `values`, each item as it was typed, and return the other flags.

    pydantic-settings would cut a prompt at its commas.
    """
    lists = {flag_of(path): path for path, kind in kinds.items() if is_list(kind)}
    found: dict[str, list[str]] = {}
    left: list[str] = []
    tokens = iter(flags)
    for token in tokens:
        flag, equals, item = token.partition("=")
        if flag not in lists:
            left.append(token)
        elif equals:
            found.setdefault(lists[flag], []).append(item)
        elif (following := next(tokens, None)) is not None:
            found.setdefault(lists[flag], []).append(following)
        else:
            raise InputError("expected one argument", where=flag, fix=HELP)
    for path, items in found.items():
        *sections, name = path.split(".")
        section = values
        for key in sections:
            section = section.setdefault(key, {})
        section[name] = items
    return left


def is_list(annotation: Any) -> bool:
    """Whether a flag of this annotation may be repeated."""
    return str(annotation).startswith(("list", "tuple"))


# ---- the preset


def chosen_preset(flags: Sequence[str], default: Path | None) -> Path | None:
    """The file after `--config`, else the default one."""
    for index, token in enumerate(flags):
        if token == "--config" and index + 1 < len(flags):
            return Path(flags[index + 1])
        if token.startswith("--config="):
            return Path(token.removeprefix("--config="))
    return default


def read_yaml(path: Path, default: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """A preset's values, and for each dotted key the `file:line` it stands on. Raises InputError.

    default: the command's own preset, whose neighbours are offered where `path` is only a name that is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except OSError as error:
        what = f"no such preset ({error.strerror})"
        raise InputError(what, where=f"--config {path}", allowed=shipped(path, default)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise InputError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=where) from None
    if not isinstance(values, dict):
        raise InputError("a preset is a list of `key: value` lines", where=path)
    lines = {key: f"{path}:{line}" for key, line in key_lines(root)}
    return values, lines


def shipped(path: Path, default: Path | None) -> str | None:
    """The presets beside a missing one, or the command's own if only a name was given."""
    own = default.parent if default is not None else Path("train/configs")
    folder = own if path.parent == Path() else path.parent
    here = Path.cwd()
    files = [file.relative_to(here) if file.is_relative_to(here) else file for file in folder.glob("*.yaml")]
    return ", ".join(sorted(map(str, files))) or None


def key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The dotted name and line of every key of a YAML mapping; a repeated key is an InputError."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in seen:
            raise InputError(f"the key {name!r} stands twice", where=f"line {line}")
        seen.add(name)
        yield name, line
        yield from key_lines(value, f"{name}.")


def forget_other_kinds(values: dict[str, Any], flags: Sequence[str]) -> None:
    """`--adapter.kind full` over a preset's `adapter: {kind: lora, rank: 16}`: the preset's rank no longer applies."""
    for name, section in values.items():
        if isinstance(section, dict) and "kind" in section:
            kind = given_value(flags, f"--{name}.kind")
            if kind not in {None, section["kind"]}:
                section.clear()


def name_default_kinds(model: type[BaseModel], values: dict[str, Any]) -> None:
    """`--adapter.rank 8` alone means the default kind; pydantic wants to read it before it looks at the rank."""
    for name, field in model.model_fields.items():
        kind = getattr(field.default, "kind", None)
        section = values.setdefault(name, {}) if kind is not None else None
        if isinstance(section, dict):
            section.setdefault("kind", kind)


def given_value(flags: Sequence[str], flag: str) -> str | None:
    """The value given for a flag, if any."""
    for index, token in enumerate(flags):
        if token == flag and index + 1 < len(flags):
            return flags[index + 1]
        if token.startswith(f"{flag}="):
            return token.removeprefix(f"{flag}=")
    return None


# ---- what went wrong, in one line


def explain(model: type[BaseModel], detail: Any, given: set[str], lines: Mapping[str, str]) -> InputError:
    """One pydantic error as an InputError that names the flag or the YAML line."""
    path = dotted(model, detail["loc"])
    where = flag_of(path) if path in given else lines.get(path) or lines.get(path.rpartition(".")[0]) or flag_of(path)
    if detail["type"] == "extra_forbidden" and path in dict(field_types(model)):
        return InputError(f"{path} does not belong to the chosen {path.rpartition('.')[0]}.kind", where=where)
    if detail["type"] == "extra_forbidden":
        siblings = [name for name in dict(field_types(model)) if name.startswith(path.rpartition(".")[0])]
        return InputError(f"unknown key {path!r}{suggest(path, siblings)}", where=where, allowed=", ".join(siblings))
    if detail["type"] == "union_tag_invalid":
        allowed = detail["ctx"]["expected_tags"].replace("'", "")
        kind = f"{path}.kind"
        where = flag_of(kind) if kind in given or path not in lines else f"{where}.kind"
        return kind_error(str(detail["ctx"]["tag"]), allowed.split(", "), where)
    if detail["type"] == "value_error":  # raised by our own validators: the text is already a sentence for people
        return InputError(str(detail["ctx"]["error"]), where=where if path else None)
    allowed = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ").partition(", unable")[0]
    return InputError(f"{detail['input']!r} is not allowed", where=where, allowed=allowed)


def kind_error(tag: str, allowed: list[str], where: str) -> InputError:
    """An unknown member of a union, with a suggestion."""
    try:
        choose(tag, allowed, what="kind", where=where)
    except InputError as error:
        return error
    raise AssertionError(f"{tag} is allowed")


def dotted(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    """A pydantic location without the tags of unions: ('adapter', 'lora', 'rank') -> 'adapter.rank'."""
    names: list[str] = []
    level: list[type[BaseModel]] = [model]
    for part in loc:
        fields = [section.model_fields[str(part)] for section in level if str(part) in section.model_fields]
        if not fields and any(getattr(s.model_fields.get("kind"), "default", None) == part for s in level):
            continue
        names.append(str(part))
        level = [section for field in fields for section in section_types(field.annotation)]
    return ".".join(names)
