"""A folder in a bucket through obstore: list, read, stream and put its objects, and say what fails.

Imported only where MODEL_DIR is a URL; obstore is the extra `remote`. Credentials are found where
the providers' own libraries look: the environment, Amazon's files of profiles, Google's application
default credentials, the machine's own. Nothing here retries for long: who calls does, and knows how
long that is worth it.
"""

from __future__ import annotations

import configparser
import os
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from watcher.config.bucket import Place
from watcher.config.source import SourceSettings
from watcher.errors import ConfigError

# A server that says nothing for so long is not waited for.
_READ_SECONDS = 20
_CHUNK_BYTES = 1 << 20
_PART_BYTES = 8 << 20  # so a single object may have 80 GB: S3 takes 10,000 parts
# AWS's own default where neither the environment nor a profile says more.
_PROFILE = "default"


class ObjectError(Exception):
    """Raised when a bucket cannot be read or written. As a string it says what to do, too.

    Attributes:
        what: What is wrong, a sentence.
        remedy: What to do about it, empty where there is nothing to say.
        lasting: No trying again helps before somebody does something.
    """

    def __init__(self, what: str, remedy: str = "", *, lasting: bool = False) -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what, self.remedy, self.lasting = what, remedy, lasting


class ObjectGone(ObjectError):
    """Raised when there is no such object, or no longer."""


class ObjectChanged(ObjectError):
    """Raised when an object is another one than was asked for."""


class StoredObject(msgspec.Struct, frozen=True):
    """One object, as a list of the folder has it.

    Attributes:
        name: Within the folder.
        etag: As the server has it: another when the bytes are.
        modified_ns: When it was put there, by the server's clock, since the epoch.
    """

    name: str
    size_bytes: int
    etag: str
    modified_ns: int

    @property
    def tag(self) -> str:
        """The ETag without quotes: a list has it without on some servers, and a reply with them."""
        return self.etag.removeprefix("W/").strip('"')


class ObjectFolder:
    """A folder in a bucket. Any thread may call; nothing is ever kept but the connection."""

    def __init__(self, place: Place, settings: SourceSettings) -> None:
        """Connect to nothing yet.

        Raises:
            ConfigError: obstore is not installed.
        """
        self.place = place
        self._settings = settings
        self._lock = threading.Lock()
        self._store: Any = None
        try:
            import obstore
        except ImportError as error:
            raise ConfigError(
                f"{place} needs obstore, which is not installed where the watcher runs",
                hint="pip install 'checkpoint-watcher[remote]'; or mount the bucket, and give that"
                " folder",
            ) from error
        self._obstore = obstore

    def list(self) -> tuple[list[StoredObject], bool]:
        """Return the objects in the folder, and whether anything at all is in or below it.

        Raises:
            ObjectError: it cannot be listed.
        """
        try:
            found = self._obstore.list_with_delimiter(self._opened())
            objects = [_object(one) for one in found["objects"]]
            return objects, bool(objects or found["common_prefixes"])
        except Exception as error:  # obstore's base class stands beside OSError and ValueError
            raise self._explained(error) from error

    def stream(self, one: StoredObject, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes of a part of an object, a MB at a time; they may end too soon.

        Raises:
            ObjectChanged: the object is not this one any more.
            ObjectGone, ObjectError: it cannot be read.
        """
        options: Any = {"range": (start, end), "if_match": one.etag or None}
        try:
            answer = self._obstore.get(self._opened(), one.name, options=options)
            # Not every server heeds If-Match.
            there = _object(answer.meta)
            if (there.tag, there.size_bytes) != (one.tag, one.size_bytes):
                raise ObjectChanged(f"{one.name} was replaced")
            for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                yield memoryview(chunk)
        except ObjectError:
            raise
        except Exception as error:
            raise self._explained(error, one.name) from error

    def read(self, one: StoredObject) -> bytes:
        """Read a whole object, which the caller knows to be small; raises as `stream`."""
        if not one.size_bytes:
            return b""
        content = b"".join(self.stream(one, 0, one.size_bytes))
        if len(content) != one.size_bytes:
            raise ObjectError(f"{self.place}: the connection broke off")
        return content

    def find(self, name: str) -> StoredObject | None:
        """Return an object by its name, None where there is none; raises ObjectError."""
        try:
            return _object(self._obstore.head(self._opened(), name))
        except Exception as error:
            explained = self._explained(error, name)
            if isinstance(explained, ObjectGone):
                return None
            raise explained from error

    def put(self, name: str, content: bytes | BinaryIO, *, new: bool = False) -> str:
        """Write an object, in parts where it is large, and return its ETag; raises ObjectError.

        Readers see what was there before until all of it is. A `new` one is refused where any is
        there already.
        """
        try:
            # Two parts at once: each is held in memory.
            made = self._obstore.put(
                self._opened(),
                name,
                content,
                mode="create" if new else "overwrite",
                chunk_size=_PART_BYTES,
                max_concurrency=2,
            )
            return str(made["e_tag"] or made["version"] or "")
        except Exception as error:
            raise self._explained(error, name) from error

    def delete(self, name: str) -> None:
        """Delete an object; one that is gone is no error. Raises ObjectError."""
        try:
            self._obstore.delete(self._opened(), name)
        except Exception as error:
            explained = self._explained(error, name)
            if not isinstance(explained, ObjectGone):
                raise explained from error

    def _opened(self) -> Any:
        with self._lock:
            if self._store is None:
                self._store = self._open()
            return self._store

    def _open(self) -> Any:
        from obstore.store import GCSStore, S3Store

        settings, place = self._settings, self.place
        google = place.scheme == "gs"
        config: dict[str, Any] = {} if google else _aws_profile()
        endpoint = settings.endpoint_url or config.pop("endpoint", None)
        if google and not endpoint and (emulator := os.environ.get("STORAGE_EMULATOR_HOST")):
            endpoint = emulator if "://" in emulator else f"http://{emulator}"
            config["skip_signature"] = True
        if endpoint:
            config["base_url" if google else "endpoint"] = endpoint.rstrip("/")
        if settings.region and not google:
            config["region"] = settings.region
        if settings.anonymous:
            config["skip_signature"] = True
        store: Any = GCSStore if google else S3Store
        return store(
            place.bucket,
            prefix=place.prefix or None,
            config=config,
            client_options={
                # Whoever gives an address without TLS means it.
                "allow_http": (endpoint or _environment_endpoint()).startswith("http://"),
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": timedelta(seconds=_READ_SECONDS),
                "timeout": timedelta(hours=1),
            },
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=_READ_SECONDS)},
        )

    def _explained(self, error: Exception, name: str = "") -> ObjectError:
        """Return what an error of obstore's means; after one of access, credentials are read anew.

        What it says itself goes on for lines: address, reply and internals.
        """
        text = str(error).partition("Debug source")[0]
        # A reply's body says what is gone, the object or all of the bucket.
        if isinstance(error, FileNotFoundError) and name and "NoSuchBucket" not in text:
            return ObjectGone(f"{name} is gone")
        if type(error).__name__ == "PreconditionError":
            return ObjectChanged(f"{name} was replaced")
        for pattern, what, remedy, lasting in _MEANINGS:
            if match := re.search(pattern, text, re.I):
                group = match[match.lastindex] if match.lastindex else ""
                what = what.format(group, bucket=self.place.bucket)
                if lasting:
                    with self._lock:
                        self._store = None
                return ObjectError(f"{self.place}: {what}", remedy, lasting=lasting)
        status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
        first = status[1] if status else text.partition("\n")[0][:200] or repr(error)
        return ObjectError(f"{self.place}: {first}")


# What a reply or a failure holds; what it means; what to do; whether it stays so until then.
_MEANINGS: tuple[tuple[str, str, str, bool], ...] = (
    (
        r"NoSuchBucket|no bucket named|specified bucket does not exist",
        "there is no bucket {bucket}",
        "is the URL right, and --endpoint-url?",
        True,
    ),
    (
        r"InvalidBucketName",
        "{bucket} is no bucket's name",
        "is the URL right?",
        True,
    ),
    (
        r"ExpiredToken|TokenRefreshRequired|token (?:has )?expired|invalid_grant",
        "the credentials have expired",
        "renew them; the watcher reads them again by itself from files, and from its environment"
        " when it is started anew",
        True,
    ),
    (
        r"RequestTimeTooSkewed|RequestExpired|Request has expired",
        "this machine's clock is wrong",
        "set it, by NTP say",
        True,
    ),
    (
        # Some servers name their region in every error.
        r"(?s)^(?=.*(?:PermanentRedirect|AuthorizationHeaderMalformed)).*"
        r"(?:expecting '([a-z0-9-]+)'|<Region>([a-z0-9-]+)</Region>)",
        "the bucket is in region {0}",
        "give that as --region",
        True,
    ),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|status code: 301|IllegalLocationConstraint"
        r"|Received redirect without LOCATION",
        "the bucket is in another region",
        "give it as --region, or in AWS_REGION",
        True,
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|status code: 401|Unauthenticated",
        "the credentials are not accepted",
        "check AWS_ACCESS_KEY_ID and the profile, or GOOGLE_APPLICATION_CREDENTIALS",
        True,
    ),
    (
        r"169\.254\.|metadata\.google|token request|error getting credentials|application_default",
        "no credentials are found",
        "set them as the provider's tools have them, or --anonymous for a public bucket",
        True,
    ),
    (
        r"status code: 403|AccessDenied|PermissionDenied",
        "access is denied",
        "the credentials need the right to list the bucket and to get its objects; for --publish"
        " to put and to delete some, too",
        True,
    ),
    (
        r"SlowDown|status code: (?:429|503)|TooManyRequests",
        "the server is busy (it throttles)",
        "it is asked again later",
        False,
    ),
    (
        r"error sending request|dns error|connection|operation timed out"
        r"|error (?:decoding|reading)",
        "the server cannot be reached, or broke off",
        "it is asked again; is --endpoint-url right?",
        False,
    ),
)


def _object(meta: Any) -> StoredObject:
    return StoredObject(
        name=meta["path"].rpartition("/")[2],
        size_bytes=meta["size"],
        etag=str(meta["e_tag"] or meta["version"] or ""),
        modified_ns=int(meta["last_modified"].timestamp() * 1e6) * 1000,
    )


def _environment_endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _aws_profile() -> dict[str, str]:
    """Return what Amazon's files say of the profile in use, as far as the environment says nothing.

    obstore reads the environment alone; every other tool reads `~/.aws/credentials` too.
    """
    home = Path(os.path.expanduser("~")) / ".aws"  # noqa: PTH111 - a user may have no home
    profile = os.environ.get("AWS_PROFILE", _PROFILE)
    section = profile if profile == _PROFILE else f"profile {profile}"
    found: dict[str, str] = {}
    for variable, file, name in (
        ("AWS_CONFIG_FILE", "config", section),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.environ.get(variable) or home / file)
            found |= dict(parser[name]) if parser.has_section(name) else {}
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue  # what is missing is told by the server
    keys = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
    }
    made = {key: found[name] for name, key in keys.items() if found.get(name)}
    if os.environ.get("AWS_ACCESS_KEY_ID") or "secret_access_key" not in made:
        made = {}
    if found.get("region") and not (
        os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    ):
        made["region"] = found["region"]
    if found.get("endpoint_url") and not _environment_endpoint():
        made["endpoint"] = found["endpoint_url"]
    return made
