"""Where files are kept: a folder of this machine, or a prefix of a bucket. Both create a name once and never replace it.

On this machine it is a link: obstore's local store neither syncs a file nor its folder (arrow-rs-object-store, #643: only on
request, which obstore does not pass on). In a bucket it is a conditional put: `If-None-Match: *` of S3 and Azure, generation 0 of GCS.
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

_MARK = "_hitrouter"
"""Written twice at the start; readers such as Spark and Hive leave names with _ alone."""
_IGNORED_CONDITION = "overwrites files that it was asked to keep (no conditional writes), so a hit could be there twice"
_BASE = {"gs": "base_url"}
"""By scheme how obstore calls the `endpoint`."""
_WITHOUT_LINKS = frozenset(
    {
        *(
            errno.ENOSYS,
            errno.EOPNOTSUPP,
            errno.ENOTSUP,
            errno.EINVAL,
        ),  # FUSE, such as rclone and gcsfuse; network shares
        *(errno.EPERM, errno.EMLINK, errno.EXDEV),  # FAT and exFAT; a file may have one name; layers of a union
    }
)
"""What link(2) answers there. Nothing else is done instead: a file that is written under its name is there in part after a crash."""
_LATER = frozenset({408, 409, 425, 429})
"""Of the answers 300 to 499 those that pass by themselves; the others say that address, bucket, rights or credentials are wrong."""


class UnfitFolder(OSError):
    """The operator must act: the folder, or what lies in it, can't be used as it is; the message says why."""


class Folder(Protocol):
    """Holds files that are whole or absent. Every call raises OSError when the disk, the network or the bucket refuses."""

    def names(self, prefix: str, after: str = "") -> list[str]:
        """The names that begin with `prefix` and stand behind `after` in the alphabet, in any order."""

    def create(self, name: str, content: bytes) -> bool:
        """Store durably; False when the name is taken, whoever took it."""

    def read(self, name: str) -> bytes:
        """The content of a file."""


class LocalFolder:
    """A folder of this machine; made when it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, prefix: str, after: str = "") -> list[str]:
        """The names that begin with `prefix` and stand behind `after`."""
        self._path.mkdir(parents=True, exist_ok=True)
        return [name for name in os.listdir(self._path) if name.startswith(prefix) and name > after]

    def create(self, name: str, content: bytes) -> bool:
        """Written aside, synced, linked under its name, and the folder synced."""
        self._path.mkdir(parents=True, exist_ok=True)
        # Not by process id: in containers all have the same, and two writers in one file mix what they write.
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
                if error.errno in _WITHOUT_LINKS:
                    raise UnfitFolder(
                        f"{self._path} is on a file system that has no hard links ({error.strerror}); "
                        "name a folder of another one, or a bucket by its address, such as s3://"
                    ) from None
                raise
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(self._path)
        return True

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self._path / name).read_bytes()


class BucketFolder:
    """A prefix of a bucket at S3, Google Cloud Storage or Azure, by obstore. `options` are those of its store."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self._url = url.partition("?")[0]
        client: dict[str, Any] = {"timeout": "60s", "allow_http": options.get("endpoint", "").startswith("http://")}
        base = _BASE.get(url.partition("://")[0], "endpoint")
        named = {base if name == "endpoint" else name: value for name, value in options.items()}
        # Who tries again, and when, is the deliverer's to say: it sends one probe at a time.
        self._store: Any = from_url(url, client_options=client, retry_config={"max_retries": 0}, **named)  # type: ignore[call-overload] # by scheme
        self._keeps = False

    def names(self, prefix: str, after: str = "") -> list[str]:
        """The names that begin with `prefix` and stand behind `after`: before it the bucket need not look."""
        names: list[str] = []
        try:
            for part in obstore.list(self._store, offset=max(prefix, after)):
                # Azurite begins at the start all the same.
                names += [meta["path"] for meta in part if meta["path"].startswith(prefix) and meta["path"] > after]
                if part and (last := part[-1]["path"]) > prefix and not last.startswith(prefix):
                    break  # all list by the alphabet: the rest belongs to other partitions
            return names
        except (BaseError, OSError) as error:
            raise self._refused(error) from None

    def create(self, name: str, content: bytes) -> bool:
        """A conditional put. One whose answer was lost finds its own file, which is as good as another's."""
        if not self._keeps:
            self._put(_MARK, b"")
            if self._put(_MARK, b""):
                raise UnfitFolder(f"{self._url} {_IGNORED_CONDITION}")
            self._keeps = True
        return self._put(name, content)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            # It was there a moment ago, or another writer is about to make it (S3 answers 409 then, as for one that is there).
            raise OSError(f"{self._url}: {name} is not there") from None
        except (BaseError, OSError) as error:
            raise self._refused(error) from None

    def _put(self, name: str, content: bytes) -> bool:
        try:
            obstore.put(self._store, name, content, mode="create", use_multipart=False)
            return True
        except (AlreadyExistsError, PreconditionError):
            return False
        except (BaseError, OSError) as error:
            raise self._refused(error) from None

    def _refused(self, error: BaseError | OSError) -> OSError:
        """Only status and code: what else an answer says, or what stands behind a `?` of an address, may be a key or a signature."""
        said = str(error)
        if "redirect without LOCATION" in said:
            return UnfitFolder(f"{self._url}: the store answers a redirect: is the bucket in another region?")
        if answer := re.search(r"non-2xx status code: (\d{3})", said):
            status, code = int(answer[1]), re.search(r"<Code>(\w+)</Code>", said)
            text = f"{self._url}: the store answers {status} {code[1] if code else ''}".rstrip()
            if 300 <= status < 500 and status not in _LATER:
                return UnfitFolder(f"{text}; check the address, the bucket and the credentials")
            return OSError(text)
        line = re.sub(r"\?\S*", "", (said.splitlines() or [""])[0])
        return OSError(f"{self._url}: {type(error).__name__}: {line[:300]}")


def open_folder(path: str, options: Mapping[str, str]) -> Folder:
    """The folder at `path`: a path, or an address such as s3://bucket/prefix. Raises ValueError for options that don't fit."""
    if "://" not in path:
        return LocalFolder(Path(path))
    try:
        return BucketFolder(path, options)
    except BaseError as error:
        raise ValueError(f"{path} can't be opened: {type(error).__name__}") from None
