"""A MODEL_DIR in a bucket: its URL, taken apart and checked. Pure."""

from __future__ import annotations

import re
from pathlib import PurePath

import msgspec

# gs: Google Cloud Storage. s3: Amazon S3, and whatever speaks its protocol.
SCHEMES = ("gs", "s3")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/+|(?P<bare>gs|gcs|s3[an]?)//+", re.I)
_OTHER_NAMES = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]")


class Place(msgspec.Struct, frozen=True):
    """A folder in a bucket.

    Attributes:
        scheme: `gs` or `s3`.
        bucket: The bucket's name.
        prefix: Names of folders with slashes between, none at the ends; empty for the whole bucket.
    """

    scheme: str
    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def name(self) -> str:
        """What a run there is called by default."""
        return self.prefix.rpartition("/")[2] or self.bucket


def is_url(text: object) -> bool:
    """Tell whether a text is meant to be a URL, be it a wrong one: `gs:/bucket` and `s3//bucket`.

    A folder of such a name is written as `./gs:/bucket`.
    """
    return isinstance(text, str) and _URL.match(text) is not None


def as_typed(path: PurePath | str) -> str:
    """Return a MODEL_DIR as it was typed: made a path, a URL has lost one of its slashes."""
    text = str(path)
    if is_url(text) and "://" not in text and not text.startswith(("/", ".")):
        return text.replace(":/", "://", 1)
    return text


def parse_place(text: str) -> Place:
    """Return the folder in a bucket that a URL names.

    Raises:
        ValueError: it names none; the message says what it was probably meant to be.
    """
    match = _URL.match(text)
    assert match, f"{text} is no URL"
    given = match["scheme"] or match["bare"]
    scheme = _OTHER_NAMES.get(given.lower(), given.lower())
    rest = text[match.end() :].rstrip("/")
    if scheme not in SCHEMES:
        raise ValueError(
            "Expected a folder, or one in a bucket: gs://bucket/run or s3://bucket/run"
        )
    bucket, _, prefix = rest.partition("/")
    if match[0] != f"{scheme}://":
        raise ValueError(f"Expected {scheme}://BUCKET/FOLDER: did you mean {scheme}://{rest}?")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"Expected {scheme}://BUCKET/FOLDER, and {bucket or 'nothing'} is no bucket's name"
        )
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f?#]", prefix):
        raise ValueError(
            f"Expected {scheme}://BUCKET/FOLDER, without empty names, dots, ? and # in FOLDER"
        )
    return Place(scheme, bucket, prefix)


def check_model_dir(text: object) -> None:
    """Raise ValueError where MODEL_DIR is a wrong URL; a folder is not looked at."""
    if is_url(text):
        parse_place(str(text))


def check_place(text: object) -> None:
    """Raise ValueError for anything but the URL of a folder in a bucket."""
    if not is_url(text):
        raise ValueError(
            "Expected a folder in a bucket: gs://bucket/run/best or s3://bucket/run/best"
        )
    parse_place(str(text))
