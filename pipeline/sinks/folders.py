"""Stores files in a local folder or under a prefix of a bucket. Both create a name once and never replace it.

A local file is created by a hard link. obstore's local store is not used, because it syncs neither the file nor its folder:
arrow-rs-object-store does so only on request (issue 643), and obstore does not pass that on. An object of a bucket is created by a
conditional put: `If-None-Match: *` at S3 and Azure, generation 0 at GCS.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from pipeline.process.durable import sync, sync_folder

_PROBE_NAME = "_hitrouter"
"""Object that is written twice at the start, to test conditional puts. Readers such as Spark and Hive ignore names with _."""
_NO_CONDITIONAL_PUTS = (
    "ignores conditional puts and overwrites existing objects, so a hit could be stored twice; use another store"
)
_ENDPOINT_OPTION = {"gs": "base_url"}
"""obstore's name of the option `endpoint`, by scheme, where it differs."""
_NO_HARD_LINKS = frozenset({
    errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL,  # FUSE, such as rclone and gcsfuse; network shares
    errno.EPERM, errno.EMLINK, errno.EXDEV,  # FAT and exFAT; one name per file; layers of a union file system
})  # fmt: skip
"""Errors of link(2) on file systems without hard links. There is no fallback: a file written under its final name could be
incomplete after a crash."""
_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
"""Statuses from 300 to 499 that are worth a retry. The others mean a wrong address, bucket, permission or credential."""


class UnusableFolder(OSError):
    """The folder or a file in it cannot be used; the operator must act. The message states the reason."""


class Folder(Protocol):
    """Holds files that are either complete or absent. Every method raises OSError for errors of disk, network or bucket."""

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Return the names that begin with `prefix` and sort after `after`, in any order."""

    def create(self, name: str, content: bytes) -> bool:
        """Store the file durably. Return False if the name exists already."""

    def read(self, name: str) -> bytes:
        """Return the content of a file."""


class LocalFolder:
    """A folder of the local file system; created if it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Return the names that begin with `prefix` and sort after `after`."""
        self._path.mkdir(parents=True, exist_ok=True)
        return [name for name in os.listdir(self._path) if name.startswith(prefix) and name > after]

    def create(self, name: str, content: bytes) -> bool:
        """Write a temporary file, sync it, link it to its name, and sync the folder."""
        self._path.mkdir(parents=True, exist_ok=True)
        # Random, because process ids repeat across containers, and two writers would mix their content in one file.
        partial = self._path / f".{name}.{secrets.token_hex(8)}"
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                sync(stream.fileno())
            try:
                os.link(partial, self._path / name)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in _NO_HARD_LINKS:
                    raise UnusableFolder(
                        f"{self._path} is on a file system without hard links ({error.strerror}); "
                        "configure a folder on another file system, or a bucket by its address, such as s3://"
                    ) from None
                raise
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(self._path)
        return True

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self._path / name).read_bytes()


class BucketFolder:
    """A prefix of a bucket of S3, Google Cloud Storage or Azure, through obstore. `options` are the options of its store."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self._url = url.partition("?")[0]
        client: dict[str, Any] = {"timeout": "60s", "allow_http": options.get("endpoint", "").startswith("http://")}
        endpoint = _ENDPOINT_OPTION.get(url.partition("://")[0], "endpoint")
        store_options = {endpoint if name == "endpoint" else name: value for name, value in options.items()}
        # No retries here: the deliverer retries, and sends one probe at a time.
        self._store: Any = from_url(url, client_options=client, retry_config={"max_retries": 0}, **store_options)  # type: ignore[call-overload] # by scheme
        self._has_conditional_puts = False
        """True once `create` has tested it."""

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Return the names that begin with `prefix` and sort after `after`. The bucket lists only from `after` on."""
        names: list[str] = []
        try:
            for page in obstore.list(self._store, offset=max(prefix, after)):
                # Filtered again, because Azurite ignores the offset.
                names += [meta["path"] for meta in page if meta["path"].startswith(prefix) and meta["path"] > after]
                if page and (last := page[-1]["path"]) > prefix and not last.startswith(prefix):
                    break  # lists are sorted, so the rest belongs to other partitions
            return names
        except (BaseError, OSError) as error:
            raise self._error_without_secrets(error) from None

    def create(self, name: str, content: bytes) -> bool:
        """Create the object by a conditional put. A repeat after a lost response returns False, like an existing name."""
        if not self._has_conditional_puts:
            self._put(_PROBE_NAME, b"")
            if self._put(_PROBE_NAME, b""):
                raise UnusableFolder(f"{self._url} {_NO_CONDITIONAL_PUTS}")
            self._has_conditional_puts = True
        return self._put(name, content)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            # It was just deleted, or another writer is creating it: S3 answers 409 then, as for an existing object.
            raise OSError(f"{self._url}: {name} does not exist") from None
        except (BaseError, OSError) as error:
            raise self._error_without_secrets(error) from None

    def _put(self, name: str, content: bytes) -> bool:
        try:
            obstore.put(self._store, name, content, mode="create", use_multipart=False)
            return True
        except (AlreadyExistsError, PreconditionError):
            return False
        except (BaseError, OSError) as error:
            raise self._error_without_secrets(error) from None

    def _error_without_secrets(self, error: BaseError | OSError) -> OSError:
        """Return the error with status and code only: the rest of a response, and the query of an address, can hold keys."""
        text = str(error)
        if "redirect without LOCATION" in text:
            return UnusableFolder(f"{self._url}: the store answers a redirect; check the region of the bucket")
        if found := re.search(r"non-2xx status code: (\d{3})", text):
            status, code = int(found[1]), re.search(r"<Code>(\w+)</Code>", text)
            message = f"{self._url}: the store answers {status} {code[1] if code else ''}".rstrip()
            if 300 <= status < 500 and status not in _TRANSIENT_STATUSES:
                return UnusableFolder(f"{message}; check the address, the bucket and the credentials")
            return OSError(message)
        line = re.sub(r"\?\S*", "", (text.splitlines() or [""])[0])
        return OSError(f"{self._url}: {type(error).__name__}: {line[:300]}")


def open_folder(path: str, options: Mapping[str, str]) -> Folder:
    """Return the folder at `path`: a local path, or an address such as s3://bucket/prefix. Raises ValueError for wrong options."""
    if "://" not in path:
        return LocalFolder(Path(path))
    try:
        return BucketFolder(path, options)
    except BaseError as error:
        raise ValueError(f"{path} cannot be opened: {type(error).__name__}") from None
