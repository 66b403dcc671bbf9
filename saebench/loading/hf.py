"""The Hugging Face hub: addresses, commits, file listings and downloads, retried while the hub is busy.

File listings are cached by commit, which never changes; so is the last known commit of each branch. After a first run
everything here works offline.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from saebench.cache import cache_folder, seal, unseal
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.results import write_atomically

T = TypeVar("T")

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPO = re.compile(f"{_NAME}(/{_NAME})?")
_URL = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(.+)")
# The revision of a pull request contains slashes: OWNER/REPO@refs/pr/1/PATH.
_PULL = re.compile(r"(refs/(?:pr/\d+|convert/[a-z]+))(?:/(.*))?")
_BUSY = (408, 429, 500, 502, 503, 504)
_INTERRUPTED = (
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "WriteError",
    "ChunkedEncodingError",
    "IncompleteRead",
)
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ConnectionError", "NameResolutionError", "ProxyError", "SSLError")
_TRIES = 5
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Address:
    """An address on the hub.

    Attributes:
        repo: OWNER/NAME, or NAME alone for the hub's first models (gpt2).
        revision: a branch, tag or commit; None for the default branch.
        path: a file or folder in the repository, without a leading or trailing slash; "" for the whole repository.
    """

    repo: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        return f"{self.repo}{'@' + self.revision if self.revision else ''}{'/' + self.path if self.path else ''}"

    @classmethod
    def parse(cls, text: str, bare: bool = False) -> "Address":
        """Parse OWNER/REPO[@REVISION][/PATH], OWNER/REPO/PATH@REVISION, or a URL of the hub.

        Args:
            text: the address, with or without the prefix "hf:" or "hf://".
            bare: accept a name without an owner.

        Raises:
            UsageError: malformed.
        """
        wrong = UsageError(
            f"'{text}' is no address on the hub: write hf:OWNER/REPO/PATH, with @REVISION after it to pin one"
        )
        rest = text.strip().removeprefix("hf:").removeprefix("//")
        url = _URL.fullmatch(rest)
        rest = (unquote(url[1].split("?")[0].split("#")[0]) if url else rest).strip("/")
        if url and rest.startswith(("datasets/", "spaces/")):
            raise wrong
        before, at, after = rest.partition("@")
        parts = before.split("/")
        owned = 2 if len(parts) > 1 or not bare else 1
        repo, inner = "/".join(parts[:owned]), parts[owned:]
        revision: str | None = None
        if at and inner:
            revision = after
        elif at:
            pull = _PULL.fullmatch(after)
            revision, path = (pull[1], pull[2] or "") if pull else (after.split("/")[0], after.partition("/")[2])
            inner = path.split("/") if path else []
        elif url and inner[:1] in (["tree"], ["blob"], ["resolve"]):
            revision, inner = (inner[1] if len(inner) > 1 else None), inner[2:]
        if not _REPO.fullmatch(repo) or repo.count("/") < (0 if bare else 1) or (at and not revision):
            raise wrong
        if any(part in ("", ".", "..") for part in inner):
            raise wrong
        return cls(repo, revision, "/".join(inner))


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit.

    Attributes:
        repo: OWNER/NAME.
        commit: the full commit hash.
        sizes: bytes by path.
    """

    repo: str
    commit: str
    sizes: dict[str, int]

    def text(self, name: str) -> str:
        """The text of a small file, downloaded if it is not cached."""
        return (fetch_files(self, [name], f"model '{self.repo}'") / name).read_text(encoding="utf-8")


def is_url(text: str) -> bool:
    """Whether `text` is the URL of a page on the hub."""
    return _URL.fullmatch(text) is not None


def listing(address: Address, subject: str) -> Listing:
    """The files of a model repository at a revision; from the cache if the hub cannot be reached.

    Args:
        subject: the SAE or model, as named in errors.

    Raises:
        UsageError: no such repository or revision.
        SaebenchError: gated, or neither reachable nor cached.
    """
    memory = cache_folder() / "hub" / _key("model", address.repo)
    try:
        commit = resolve(address.repo, address.revision)
        known = _remembered(memory / f"{commit}.json")
        if known is None:
            known = _sizes(address.repo, commit)
            _remember(memory / f"{commit}.json", known)
        return Listing(address.repo, commit, known)
    except ImportError as error:
        raise UsageError("hf: needs huggingface_hub: pip install huggingface_hub") from error
    except SaebenchError:
        raise
    except Exception as error:
        found = _snapshot(address) if is_unreachable(error) else None
        if found is None:
            raise hub_error(subject, error) from error
        return found


def resolve(repo: str, revision: str | None, kind: str = "model") -> str:
    """The full commit hash of a revision; the last known one if the hub cannot be reached.

    Args:
        revision: a branch, tag, or full or abbreviated commit; None for the default branch.
        kind: "model" or "dataset".
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    memory = cache_folder() / "hub" / _key(kind, repo, revision or "main")
    try:
        commit = _short(repo, revision, kind) if revision and re.fullmatch("[0-9a-f]{7,39}", revision) else None
        if commit is None:
            from huggingface_hub import HfApi

            commit = str(retried(lambda: HfApi().repo_info(repo, revision=revision, repo_type=kind)).sha)
    except Exception as error:
        known = _remembered(memory) if is_unreachable(error) else None
        if known is None:
            raise
        return str(known)
    _remember(memory, commit)
    return commit


def _short(repo: str, start: str, kind: str) -> str | None:
    """The only commit with this prefix; None if there is none (a branch name may look like a hash)."""
    from huggingface_hub import HfApi

    commits = [c.commit_id for c in retried(lambda: HfApi().list_repo_commits(repo, repo_type=kind))]
    found = [commit for commit in commits if commit.startswith(start)]
    if len(found) > 1 or (not found and kind == "dataset"):
        label = "data set" if kind == "dataset" else kind
        raise SaebenchError(f"{label} '{repo}' has {len(found)} commits that begin with {start}: give more digits")
    return found[0] if found else None


def _sizes(repo: str, commit: str) -> dict[str, int]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = retried(lambda: list(HfApi().list_repo_tree(repo, recursive=True, revision=commit)))
    return {entry.path: int(entry.size) for entry in entries if isinstance(entry, RepoFile)}


def _snapshot(address: Address) -> Listing | None:
    """The files of this commit in the hub client's own cache, downloaded by another tool."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(address.repo, revision=address.revision, local_files_only=True))
    except Exception:
        return None
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return Listing(address.repo, folder.name, files) if files else None


def fetch_files(found: Listing, names: Collection[str], subject: str) -> Path:
    """Download the files of a listing that are not cached yet; return their folder.

    Raises:
        SaebenchError: a file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    def one(name: str) -> Path:
        return Path(retried(lambda: hf_hub_download(found.repo, name, revision=found.commit)))

    try:
        with ThreadPoolExecutor(4) as pool:
            paths = dict(zip(names, pool.map(one, names), strict=True))
    except Exception as error:
        raise hub_error(subject, error) from error
    name, path = next(iter(paths.items()))
    return path.parents[name.count("/")]


# --- a busy hub, and errors -------------------------------------------------------------------------------------------


def retried(call: Callable[[], T]) -> T:
    """The result of `call`, retried while the hub is busy (429, 5xx) or drops the connection; waits as Retry-After asks."""
    for attempt in range(_TRIES):
        try:
            return call()
        except Exception as error:
            wait = wait_before_retry(error, attempt)
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def wait_before_retry(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait before another attempt; None if another attempt would fail too, or the attempts are used up."""
    if attempt + 1 >= _TRIES or is_unreachable(error):
        return None
    response = next((r for e in _chain(error) if (r := getattr(e, "response", None)) is not None), None)
    status = getattr(response, "status_code", None)
    if status not in _BUSY and not any(type(e).__name__ in _INTERRUPTED for e in _chain(error)):
        return None
    asked = str(getattr(response, "headers", {}).get("Retry-After", ""))
    return min(float(asked) if asked.isdigit() else 2.0**attempt, _LONGEST_WAIT)


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub sent no response: offline mode, no network, no such host."""
    names = {type(e).__name__ for e in _chain(error)}
    return bool(names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", *_UNREACHABLE}) and not any(
        getattr(e, "response", None) is not None for e in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def hub_error(subject: str, error: BaseException) -> SaebenchError:
    """The error of a failed request, with its root cause and the remedy for that cause.

    Args:
        subject: the model, SAE or data set, as the user named it.
        error: of the hub client, the network or the disk.
    """
    if isinstance(error, SaebenchError):
        return error
    chain = list(_chain(error))
    names = {type(e).__name__ for e in chain}
    status = next((r.status_code for e in chain if (r := getattr(e, "response", None)) is not None), 0)
    why = _reason(chain)
    module = next((e for e in chain if isinstance(e, ImportError)), None)
    if module is not None or "Compression type zstd" in why:  # fsspec's message if zstandard is missing
        name = "zstandard" if module is None else module.name or "a package"
        return SaebenchError(f"{subject} cannot be read without {name} ({why}): pip install {name}")
    if "GatedRepoError" in names or status == 403:
        return SaebenchError(
            f"{subject} is gated ({why}): accept its licence on its hub page, then log in with `hf auth login` or set HF_TOKEN"
        )
    if "RevisionNotFoundError" in names:
        return UsageError(f"{subject}: no such revision on the hub ({why})")
    if status == 401 or names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return UsageError(
            f"{subject} is not on the hub, or private ({why}): check the name, and HF_TOKEN if it is private"
        )
    if status == 429:
        return SaebenchError(
            f"{subject}: the hub refuses requests, {_TRIES} times in a row ({why}): wait, or set HF_TOKEN"
        )
    if status >= 500:
        return SaebenchError(f"{subject}: the hub fails, {_TRIES} times in a row ({why}): try again later")
    if is_unreachable(error):
        return SaebenchError(f"{subject} is not cached and the hub cannot be reached ({why}): check the network")
    return SaebenchError(f"{subject} could not be read ({why})")


def _reason(chain: list[BaseException]) -> str:
    """The server's response, else the error's text and its root cause's, both in full."""
    for error in chain:
        response = getattr(error, "response", None)
        if response is not None:
            own = getattr(error, "server_message", None)
            return f"{response.status_code} {' '.join(str(own or one_line(error, 400)).split())}"
    first, last = chain[0], chain[-1]
    outer = f"{type(first).__name__}: {one_line(first, 400)}"
    inner = f"{type(last).__name__}: {one_line(last, 400)}"
    return outer if last is first or one_line(last, 400) in outer else f"{outer}; cause: {inner}"


# --- known commits -----------------------------------------------------------------------------------------


def _key(*parts: str) -> str:
    from huggingface_hub import constants

    return hashlib.sha256("\0".join([constants.ENDPOINT, *parts]).encode()).hexdigest()[:32]


def _remembered(path: Path) -> Any:
    try:
        body = unseal(path.read_bytes())
        return None if body is None else json.loads(body)
    except (OSError, ValueError):
        return None


def _remember(path: Path, value: Any) -> None:
    with suppress(OSError, SaebenchError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, seal(json.dumps(value).encode()))


def pinned(address: Address, found: Listing) -> Address:
    """The address with the commit of its revision."""
    return replace(address, revision=found.commit)
