"""Names of features that another tool computed: `import:NAME` stands where a backbone's name would."""

from __future__ import annotations

PREFIX = "import:"


def is_imported(backbone: str) -> bool:
    """Whether features were computed by another tool, so that framebank cannot compute them from images.

    >>> is_imported("import:dinov2"), is_imported("EfficientNetLite0")
    (True, False)
    """
    return backbone.startswith(PREFIX)
