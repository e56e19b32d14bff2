"""A data set's description in Croissant (JSON-LD, http://mlcommons.org/croissant/1.1), written with mlcroissant."""

import json
import logging
import mimetypes
import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..files import digest_of, write
from .catalogue import Entry, File

VERSION = "http://mlcommons.org/croissant/1.1"
TYPES = {"image": "IMAGE_OBJECT", "int": "INTEGER", "float": "FLOAT"}  # else TEXT


def describe(entry: Entry, root: Path, state: str, reasons: list[str], out: Path) -> list[str]:
    """Writes the description of what is under root, and returns what mlcroissant would like to see in it, too.

    The addresses in it are relative to root: there, mlcroissant reads the records from the files as they lie.

    Raises:
        ConfigError: mlcroissant is not installed.
        DataError: it does not accept the description, or the file cannot be written.
    """
    try:
        import mlcroissant as mlc
    except ImportError:
        raise ConfigError("describe needs mlcroissant: pip install 'tmbench[croissant]'") from None
    logging.getLogger("absl").setLevel(logging.ERROR)  # the warnings are returned
    text = f"{entry.about}."
    if state == "subset":
        text += f" What is described here is a subset or another version of it: {'; '.join(reasons)}."
    try:
        metadata = mlc.Metadata(
            conforms_to=[VERSION],
            name=entry.name,
            description=" ".join([text, *entry.facts]),
            url=entry.homepage,
            license=[entry.terms],
            cite_as=entry.citation,
            date_published=entry.published,
            data_limitations=list(entry.facts),
            distribution=[*_archives(mlc, entry), *(node for file in entry.files for node in _files(mlc, file, root))],
            record_sets=[_records(mlc, entry, name) for name in entry.records],
        )
        described = metadata.to_json() | {"conditionsOfAccess": (entry.by_hand or entry.terms).format(root=root.name)}
        checked = mlc.Dataset(jsonld=json.loads(json.dumps(described)))
    except mlc.ValidationError as error:
        raise DataError(f"{out}: mlcroissant does not accept the description of {entry.name}: {error}") from None
    try:
        write(out, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); name another file with out=FILE") from None
    return sorted(re.sub(r".*/(\w+)\" is recommended.*", r"\1", text) for text in checked.metadata.ctx.issues.warnings)


def _archives(mlc: Any, entry: Entry) -> list[Any]:
    """The published archives whose digest is known; what is read lies unpacked in the files."""
    return [
        mlc.FileObject(
            id=file.path, name=file.path, content_url=file.urls[0], encoding_formats=[_format(file.path)],
            content_size=f"{file.size} B", sha256=file.sha256, same_as=list(file.urls[1:]) or None,
            description="the published archive",
        )
        for file in entry.archives
        if file.sha256
    ]  # fmt: skip


def _files(mlc: Any, file: File, root: Path) -> list[Any]:
    if "*" in file.path:
        about = {"encoding_formats": [_format(file.path)], "description": f"{len(file.under(root)):,} files"}
        return [mlc.FileSet(id=file.path, name=file.path, includes=[file.path], **about)]
    return [
        mlc.FileObject(
            id=file.path, name=path.name, content_url=path.relative_to(root).as_posix(),
            encoding_formats=[_format(path.name)], content_size=f"{path.stat().st_size} B",
            sha256=(digest := digest_of(path)),
            same_as=list(file.urls) if digest == file.sha256 and file.urls else None,
        )
        for path in file.under(root)
    ]  # fmt: skip


def _records(mlc: Any, entry: Entry, name: str) -> Any:
    def field(key: str, spec: dict[str, str]) -> Any:
        how, _, column = spec["extract"].partition(":")
        extract = mlc.Extract(column=column) if column else mlc.Extract(file_property=mlc.FileProperty[how])
        where = {"file_set" if "*" in spec["from"] else "file_object": spec["from"]}
        transforms = [mlc.Transform(regex=spec["regex"])] if "regex" in spec else []
        return mlc.Field(
            id=f"{name}/{key}", name=key, description=spec.get("about"),
            data_types=[getattr(mlc.DataType, TYPES.get(spec.get("type", ""), "TEXT"))],
            source=mlc.Source(**where, extract=extract, transforms=transforms),
        )  # fmt: skip

    about = f"{entry.counts[name]:,} in the full set" if entry.counts.get(name) else None
    fields = [field(key, spec) for key, spec in entry.records[name].items()]
    return mlc.RecordSet(id=name, name=name, description=about, fields=fields)


def _format(path: str) -> str:
    return mimetypes.guess_type(path)[0] or "application/octet-stream"
