"""A quantised trunk, and the file that keeps it beside its store."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from features._common.atomic import atomic_write
from features._common.strict_json import parse_json
from features._common.zip_limits import ZIP_ERRORS, open_zip
from features.errors import DataError, StoreError, raise_refusal
from features.recipe import canonical_json

MISSING_HINT = "copy it from where the store was made, or extract into another store: --store OTHER.h5"


@dataclass(frozen=True)
class QuantisedNetwork:
    """A trunk in OpenVINO's format."""

    graph: bytes  # XML
    weights: bytes
    outputs: Mapping[str, str]  # stream → name of its maps' tensor
    origin: Mapping[str, str]  # how it was made: digest of the `frames`, and versions of `nncf` and `openvino`
    errors: Mapping[str, float]  # stream → largest error on these frames, relative to the largest value

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that determines its maps."""
        parts = (self.graph, self.weights, canonical_json(dict(self.outputs)).encode())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def save(self, path: Path) -> None:
        """Write it to a file, which appears once it is complete."""
        facts = {name: dict(getattr(self, name)) for name in ("outputs", "origin", "errors")}
        about = canonical_json({"digest": self.digest, **facts})
        contents = {"about.json": about.encode(), "trunk.xml": self.graph, "trunk.bin": self.weights}
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(name), content)

    @classmethod
    def load(cls, path: Path) -> QuantisedNetwork:
        """Read what `save` wrote; a StoreError if the file is damaged or missing."""
        if not path.exists():
            raise StoreError(f"{path}: the store's quantised network is missing", hint=MISSING_HINT)
        try:
            with open_zip(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("compressed")  # it could take any amount of memory
                about = parse_json(archive.read("about.json").decode())
                graph, weights = archive.read("trunk.xml"), archive.read("trunk.bin")
            network = cls(graph, weights, about["outputs"], about["origin"], about["errors"])
            if network.digest != about["digest"]:
                raise ValueError("its digest is another")
        except (*ZIP_ERRORS, DataError, LookupError, TypeError, AttributeError) as e:
            raise_refusal(e, path)
            raise StoreError(f"{path}: damaged ({e})", expected="a quantised network", hint=MISSING_HINT) from None
        return network
