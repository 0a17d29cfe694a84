"""Command lines as typed objects: a command's options and the config's settings become flags, by tyro.

A command is a dataclass. Its fields are its options, and a field `settings: Settings` adds a flag `--section.key` for
each setting of the config, whose defaults are those of the config file. Every error is raised as one ConfigError.
"""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

import tyro
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from tyro import _errors as parsing  # its hook is the one way to errors in our words; private, so pyproject caps tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from features._common.atomic import sweep
from features._common.console import logger
from features._common.user_path import expand_user
from features.config import CONFIG_SECTIONS, Config, read_config
from features.errors import ConfigError
from features.head_config import HeadConfig
from features.strict_model import StrictModel, describe_validation_error, did_you_mean
from framebank.workflows import expand

Settings = Annotated[Config, tyro.conf.arg(name="")]  # flags are --section.key, without a prefix for the field
AnyCommand = TypeVar("AnyCommand", bound="Command")
OUTPUTS = ("output", "overlay", "report")  # names of options that are files to write
MARKERS = (tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff)


@dataclass(frozen=True)
class Command:
    """A subcommand. Its fields are its options; `settings`, if it has such a field, holds the config."""

    sections: ClassVar[Collection[str]] = CONFIG_SECTIONS  # sections of the config that the help shows
    quiet: bool = dataclasses.field(default=False, kw_only=True)
    """Show only results, warnings and errors: no progress, no messages."""
    verbose: bool = dataclasses.field(default=False, kw_only=True)
    """Show times, details, what libraries print, and the traceback of every error."""

    def __call__(self) -> None:
        """Run the command."""
        raise NotImplementedError

    def delete_leftovers(self) -> None:
        """Delete what killed commands have left in the folders that the options name."""
        sweep(*(path.parent for name in OUTPUTS if isinstance(path := getattr(self, name, None), Path)))

    @classmethod
    def with_defaults(cls, arguments: Sequence[str]) -> Sequence[str]:
        """Add the options whose defaults must be looked up, unless they are given; by default none."""
        return arguments

    @classmethod
    def read_config(cls, arguments: Sequence[str]) -> Config:
        """The settings that flags override, and that help shows as defaults."""
        path = last_value(arguments, "--config")
        return Config() if path is None else read_config(expand(path))

    @classmethod
    def summary(cls) -> str:
        """The first sentence of the docstring, without its full stop."""
        return " ".join((cls.__doc__ or "").split()).split(". ")[0].rstrip(".")

    @classmethod
    def description(cls) -> str:
        """What the command's help begins with. Its lines are indented, since tyro joins others."""
        return wrap(" ".join((cls.__doc__ or "").split()), "  ", "  ")


def wrap(text: str, first: str = "", rest: str = "") -> str:
    """Break text into lines as wide as the terminal, indented by `first` and `rest`."""
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def parse(command: type[AnyCommand], arguments: Sequence[str], config: Config, *, prog: str) -> AnyCommand:
    """Read the options of a command, whose flags override the settings of `config`.

    Raises:
        ConfigError: an option is wrong.
        SystemExit: the arguments ask for help, which was printed.
    """
    name = last_value(arguments, "--head.name")
    if name is not None and name != config.head.name:
        config = _with_head(config, name)
    known = [f"--{name}" for name in option_names(command, config)]
    with parsing.on_parse_error(lambda event: _refuse(event, arguments, known, config, prog)):
        options = tyro.cli(
            command,
            args=_with_values(command, arguments),
            prog=prog,
            description=command.description(),
            registry=registry(config, command.sections),
            config=MARKERS,
            use_underscores=True,
        )
    values = vars(options)
    changes: dict[str, Any] = {name: expand_user(value) for name, value in values.items() if isinstance(value, Path)}
    if "settings" in values:
        changes["settings"] = _merged(config, values["settings"], given_options(arguments), prog)
    return dataclasses.replace(options, **changes)


def _with_values(command: type[Command], arguments: Sequence[str]) -> list[str]:
    """Add `true` after each of a command's switches, such as --rehash, that is given without a value."""
    switches = {field.name for field in dataclasses.fields(command) if isinstance(field.default, bool)}
    words: list[str] = []
    for i, word in enumerate(arguments):
        words.append(word)
        has_value = i + 1 < len(arguments) and arguments[i + 1].lower() in ("true", "false")
        if word.startswith("--") and word[2:].replace("-", "_") in switches and not has_value:
            words.append("true")
    return words


def registry(config: Config, sections: Collection[str] = Command.sections) -> ConstructorRegistry:
    """How tyro turns our types into flags: settings as nested dictionaries, for pydantic to validate all at once."""
    rules = ConstructorRegistry()

    @rules.struct_rule
    def model_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not (isinstance(info.type, type) and issubclass(info.type, StrictModel)):
            return None
        model = config if info.type is Config else info.default
        settings = [(name, field) for name, field in type(model).model_fields.items() if not field.exclude]
        fields = tuple(_field_spec(model, name, field, sections) for name, field in settings)
        return StructConstructorSpec(instantiate=dict, fields=fields)

    @rules.primitive_rule
    def bool_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
        if info.type is not bool:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{true,false}",
            instance_from_str=lambda words: TypeAdapter(bool).validate_python(words[0]),
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(value).lower()],
        )

    return rules


def is_switched_on(arguments: Sequence[str], option: str) -> bool:
    """Whether a command line turns a switch on: given alone or with `true`; the last one counts."""
    state = False
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == option:
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            state = (value if equals else following).lower() != "false"
    return state


def option_names(command: type, config: Config) -> list[str]:
    """The names of all options of a command, without their dashes."""
    names = [field.name for field in dataclasses.fields(command)]
    settings = [
        f"{section}.{key}" for section in CONFIG_SECTIONS for key in type(getattr(config, section)).model_fields
    ]
    return [name for name in names if name != "settings"] + (settings if "settings" in names else [])


def given_options(arguments: Iterable[str]) -> set[str]:
    """The names of the options on a command line, without their dashes and with underscores."""
    return {word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}


def last_value(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option, before the command line is parsed as a whole; None where it is not given."""
    value = None
    for i, word in enumerate(arguments):
        name, equals, text = word.partition("=")
        if name.replace("-", "_") == option.replace("-", "_"):
            value = text if equals else arguments[i + 1] if i + 1 < len(arguments) else value
    return value


def _field_spec(model: StrictModel, name: str, field: FieldInfo, sections: Collection[str]) -> StructFieldSpec:
    value = getattr(model, name)
    if isinstance(value, StrictModel):
        kind: Any = type(value) if name in sections else tyro.conf.Suppress[type(value)]  # type: ignore[misc]
        return StructFieldSpec(name, kind, value)
    kind, description = field.annotation, field.description
    if isinstance(model, HeadConfig) and name == "name":  # any name, since its head's settings are read then
        kind, description = str, HeadConfig.model_fields["name"].description
    text = " ".join((description or "").split())
    shown = tyro.conf.arg(help=text, help_behavior_hint=f"(default: {_shown(value)})", metavar=_metavar(kind))
    return StructFieldSpec(name, Annotated[kind, shown], value)  # type: ignore[arg-type]


def _metavar(kind: Any) -> str | None:
    """What help calls the values of a type; None where tyro's own word for it is good."""

    def plain(part: Any) -> Any:
        return get_args(part)[0] if get_origin(part) is Annotated else part

    parts = {get_origin(part) or part for part in map(plain, get_args(kind) or (kind,))} - {type(None)}
    if get_origin(kind) is tuple:
        return None if ... not in get_args(kind) else f"{plain(get_args(kind)[0]).__name__.upper()} ..."
    if tuple in parts:
        return "STR ..."
    if get_origin(kind) is dict:
        return "KEY VALUE ..."
    if parts <= {int, float, str} and bool not in parts:
        return "|".join(sorted(part.__name__.upper() for part in parts))
    return None


def _shown(value: Any) -> str:
    """A default, as help shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | dict):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _with_head(config: Config, name: str) -> Config:
    """The config with another head, which keeps the settings from the file that it reads as well."""
    before, head = config.head, config.head.renamed(name)
    dropped = sorted(before.model_fields_set - head.model_fields_set - {"name"})
    if dropped:
        logger.info(f"Settings of {before.name} that {name} does not have are dropped: {', '.join(dropped)}.")
    return config.model_copy(update={"head": head})


def _merged(config: Config, values: dict[str, dict[str, Any]], given: set[str], prog: str) -> Config:
    """The config with the settings that the command line gives."""
    named = {f"{section}.{key}": value for section, settings in values.items() for key, value in settings.items()}
    try:
        merged = config.with_settings({name: value for name, value in named.items() if name in given})
    except ValidationError as e:
        raise ConfigError(describe_validation_error(e), hint=f"{prog} --help") from None
    if any(name.startswith(("head.", "data.target")) for name in given):  # one run is asked for
        return merged
    return merged.model_copy(update={"compare": config.compare})


def _refuse(
    event: parsing.ParseErrorEvent, arguments: Sequence[str], known: Sequence[str], config: Config, prog: str
) -> None:
    """Raise a ConfigError for what tyro refuses. Other kinds of events are left to tyro."""
    hint = f"{prog} --help"
    match event:
        case parsing.UnrecognizedArgs(tokens=tokens):
            if any(token.startswith("--head.") for token in tokens):
                hint = f"{prog} --head.name {config.head.name} --help"
            raise ConfigError("; ".join(_unknown_options(tokens, known, config)), hint=hint)
        case parsing.InvalidChoice(argument=argument, value=value, choices=choices):
            what = f"{_flag(argument)}: no such choice{did_you_mean(value, choices)}"
            raise ConfigError(what, expected=f"one of {', '.join(choices)}", got=value, hint=hint)
        case parsing.BadValue(argument=argument):
            flag, expected, got = _flag(argument), argument.lowered.metavar, None
            if argument.lowered.nargs != 1:
                hint = f"{flag} {_shown(argument.field.default)}"
                expected, got = f"{expected} with spaces between", last_value(arguments, flag)
            if file := next((a for a in arguments if a.startswith("-") and Path(a).exists()), None):
                hint = f"./{file}"  # which is not taken for an option
            raise ConfigError(f"{flag}: value missing", expected=expected, got=got, hint=hint)
        case parsing.MissingArgs(missing_arguments=missing):
            flags = ", ".join(f"{_flag(context.arg)} {context.arg.lowered.metavar}" for context in missing)
            raise ConfigError(f"{flags} is required", hint=hint)
        case parsing.InstantiationFailure(argument=argument) if argument is not None:
            flag = _flag(argument)
            got = last_value(arguments, flag)
            raise ConfigError(f"{flag}: wrong value", expected=argument.lowered.metavar, got=got, hint=hint)


def _unknown_options(tokens: Sequence[str], known: Sequence[str], config: Config) -> Iterator[str]:
    """One clause for each unknown option; if there is none, for the words that belong to no option."""
    options = [token.split("=")[0] for token in tokens if token.startswith("-")]
    if not options:
        option = " (did you mean --config?)" if tokens[0].endswith(".toml") else ""
        yield f"unexpected {', '.join(map(repr, tokens))}{option}"
    for option in options:
        if option.startswith("--head."):
            settings = [name[7:] for name in known if name.startswith("--head.") and name != "--head.name"]
            nearest = did_you_mean(option[7:], settings)
            yield f"unknown option {option}{nearest}, {config.head.name} has {', '.join(settings) or 'no settings'}"
        elif option in known:
            yield f"{option} is not an option of this command"
        else:
            yield f"unknown option {option}{did_you_mean(option, known)}"


def _flag(argument: Any) -> str:
    return str(argument.lowered.name_or_flags[-1])
