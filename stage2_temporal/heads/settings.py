"""A head's settings: the fields of the config's [head] and [train] sections, declared there and nowhere else."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from pydantic import ValidationError

from features.config import HeadConfig, TrainConfig, describe_validation_error
from features.errors import ConfigError

NOT_THE_HEADS = ("name", "memory_gb", "tensorboard")  # the class, its Inputs, and its caller decide these
FIELDS = {
    n: f for section in (HeadConfig, TrainConfig) for n, f in section.model_fields.items() if n not in NOT_THE_HEADS
}

# what scikit-learn reads a head's parameters from
SIGNATURE = inspect.Signature(
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=f.default) for n, f in FIELDS.items()),
    ]
)


def sections(estimator: Any) -> tuple[HeadConfig, TrainConfig]:
    """An estimator's settings as the two sections, checked.

    Raises:
        ConfigError: one of the wrong kind or out of range.
    """
    # numpy's scalars, as grids of settings are made of, as Python's own
    values = {n: v.item() if isinstance(v := getattr(estimator, n), np.generic) else v for n in FIELDS}
    try:
        head, train = (
            section.model_validate({n: v for n, v in values.items() if n in section.model_fields})
            for section in (HeadConfig, TrainConfig)
        )
    except ValidationError as e:
        raise ConfigError(f"{type(estimator).__name__}: {describe_validation_error(e)}", hint="set_params") from None
    assert isinstance(head, HeadConfig) and isinstance(train, TrainConfig)
    return head, train
