"""Finds the present commit of a branch or tag on the Hugging Face hub.

A branch may move during a sweep. Before the first trial it is replaced by its commit, by which every trial loads data
and models.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.schema.trial import DEFAULT_BRANCH

RepoType = Literal["model", "dataset"]

TIMEOUT_SECONDS = 20.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(ValueError):
    """The commit of a revision cannot be found out. The message says what to do."""


@dataclass(frozen=True)
class Commit:
    """A commit of a repository of the hub, and the source that named it."""

    sha: str
    source: Literal["given", "hub", "cache"]


@functools.cache
def commit_of(name: str, revision: str | None, kind: RepoType) -> Commit:
    """The present commit of a revision of a repository. A process asks once for each.

    The hub is asked. If it cannot be reached, or must not be (``HF_HUB_OFFLINE``), the local cache has the commit at
    which the revision was last downloaded.

    Args:
        name: E.g. ``meta-llama/Llama-3.2-1B``.
        revision: Branch, tag or commit; None is the hub's main. A complete commit is returned as it is.
        kind: The kind of repository.

    Raises:
        HubError: There is no such repository or revision, or neither hub nor cache knows the commit.
    """
    wanted = revision or DEFAULT_BRANCH
    if _COMMIT.fullmatch(wanted):
        return Commit(wanted, "given")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    missing = f"{name!r} is no folder here, and so a name on the hub"
    try:
        sha = HfApi().repo_info(name, revision=wanted, repo_type=kind, timeout=TIMEOUT_SECONDS).sha
    except HFValidationError as error:
        raise HubError(f"{missing}, but none that can be: {error}") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{name!r} has no revision {wanted!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{missing}, which has no {kind} of that name, or needs a token for it (hf auth login)"
        ) from error
    except Exception as error:
        if (known := cached_commit(name, wanted, kind)) is not None:
            return Commit(known, "cache")
        why = next(iter(str(error).splitlines()), "no answer")
        raise HubError(
            f"{missing}, which cannot be asked what {wanted!r} is now ({type(error).__name__}: {why}) and whose cache "
            "here does not know it; give the commit that its page shows"
        ) from error
    if sha is None:
        raise HubError(f"the hub names no commit for {wanted!r} of {name!r}; give the commit that its page shows")
    return Commit(sha, "hub")


def cached_commit(name: str, revision: str, kind: RepoType) -> str | None:
    """The commit of a revision when it was last downloaded to this machine; None if it was not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    reference = folder / "refs" / revision
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    beginnings = [path.name for path in folder.glob("snapshots/*") if path.name.startswith(revision)]
    return beginnings[0] if len(beginnings) == 1 and re.fullmatch(r"[0-9a-f]{7,}", revision) else None
