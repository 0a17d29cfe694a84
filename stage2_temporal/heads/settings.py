"""A head's parameters as scikit-learn knows them: its own settings, and those of the section [train] that it reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pydantic import ValidationError

from features.config import TrainConfig
from features.errors import ConfigError
from features.head_config import HeadConfig
from features.strict_model import StrictModel, describe_validation_error, did_you_mean


def constructor(settings: type[HeadConfig], train: Iterable[str]) -> Callable[..., None]:
    """Make an `__init__` with a head's settings but their name, and the fields `train` of [train], as parameters.

    scikit-learn reads them from its signature.
    """
    fields = {name: field for name, field in settings.model_fields.items() if name != "name"}
    fields |= {name: field for name, field in TrainConfig.model_fields.items() if name in train}

    def __init__(self: Any, **parameters: Any) -> None:
        unknown = [name for name in parameters if name not in fields]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no setting {', '.join(unknown)}{did_you_mean(unknown[0], fields)}, "
                f"it has {', '.join(fields)}"
            )
        for name, field in fields.items():
            setattr(self, name, parameters.get(name, field.default))

    kind = inspect.Parameter
    parameters = [kind(name, kind.KEYWORD_ONLY, default=field.default) for name, field in fields.items()]
    signature = inspect.Signature([kind("self", kind.POSITIONAL_OR_KEYWORD), *parameters])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def validated(estimator: Any, section: type[StrictModel]) -> Any:
    """Validate an estimator's parameters as a `section`, whose other fields have their defaults.

    Raises:
        ConfigError: a parameter has the wrong type or is out of range.
    """
    # NumPy numbers become Python's, because grids of parameters are often arrays
    values = {
        name: value.item() if isinstance(value := getattr(estimator, name), np.generic) else value
        for name in section.model_fields
        if name != "name" and hasattr(estimator, name)
    }
    try:
        return section.model_validate(values)
    except ValidationError as e:
        kind = type(estimator).__name__
        raise ConfigError(f"{kind}: {describe_validation_error(e)}", hint="set_params") from None
