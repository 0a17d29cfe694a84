"""Optional packages: an error that names the extra which installs a missing one."""

from __future__ import annotations

from importlib.util import find_spec

from features.errors import ConfigError


def require_package(package: str, extra: str, purpose: str) -> None:
    """Raise a ConfigError, with the extra of framebank to install, if a package that `purpose` needs is missing."""
    if find_spec(package) is None:
        raise ConfigError(f"{purpose} needs the package {package}", hint=f'pip install "framebank[{extra}]"')
