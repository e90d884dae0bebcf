"""Downloads the base model of a trial from the Hugging Face hub, once for all that share a cache. Imports no torch."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.models.model_files import EMBEDDED, IDENTIFYING_FILES, local_folder, quantized_by, weights_files
from bench.schema.trial import DEFAULT_BRANCH, ModelSpec

# Files of other libraries: those in folders, and weights in a form of their own beside those of transformers.
OF_OTHERS = ("*/*", "consolidated*.safetensors")
# How often the size of what has been downloaded is told.
TELL_SECONDS = 1.0
# How often a process looks whether another one has finished.
LOOK_SECONDS = 0.5

Told = Callable[[int, int | None], None]
"""Is told the bytes that are here, and those of all files; None where the hub does not say."""


def is_on_hub(spec: ModelSpec) -> bool:
    """Whether a model is loaded from the hub's cache, to which it may have to be downloaded."""
    return spec.path != EMBEDDED and local_folder(spec) is None


def quantized_on_hub(name: str, commit: str) -> str | None:
    """The quantisation of a model's weights, by its configuration on the hub or in the cache.

    None if they are not quantised, or nobody has the configuration: loading says what is wrong then.
    """
    from huggingface_hub import hf_hub_download

    try:
        return quantized_by(Path(hf_hub_download(name, "config.json", revision=commit)).parent)
    except Exception:  # noqa: BLE001 - of many kinds: network, permission, no such file
        return None


def download(spec: ModelSpec, told: Told | None = None) -> None:
    """Download the files of a model that are not in this machine's cache yet.

    Of all processes that share the cache one downloads; the others wait for it, and then have nothing to do. If it
    fails or dies, the next one tries. A lock in the cache sees to that, which needs no agreement on what a machine is:
    names of machines may be equal, and machines may share a cache.

    If it fails, the log of the rank says so, and loading the model says what is missing: mirrors of the hub may not
    list the files of a repository, and still have them.

    Args:
        spec: A model of the hub.
        told: Called about once a second, if anything has to be downloaded; None: nobody is told.
    """
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return  # loading says what is missing
    wanted: dict[str, Any] = {
        "repo_id": spec.path,
        "revision": spec.pinned_revision or DEFAULT_BRANCH,
        "allow_patterns": list(IDENTIFYING_FILES),
        "ignore_patterns": list(OF_OTHERS),
    }
    if _are_here(wanted):
        return
    try:
        with _telling(spec, told), _alone(spec):
            if not _are_here(wanted):
                snapshot_download(**wanted)
    except Exception as error:  # noqa: BLE001 - loading tries again, and its error is the one that counts
        sys.stderr.write(f"the files of {spec.path!r} are not downloaded before they are loaded: {error}\n")


def _are_here(wanted: dict[str, Any]) -> bool:
    """Whether the cache has a model's configuration and all its weights, so that the hub need not be asked."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
        weights = weights_files(folder)
    except (OSError, ValueError):  # not there, or with a damaged index
        return False
    return all(path.is_file() for path in (folder / "config.json", *weights))


@contextmanager
def _alone(spec: ModelSpec) -> Iterator[None]:
    """Inside the block no other process downloads this model to the same cache, where it can be locked."""
    lock = _folder_of(spec, ".locks") / "tuneoff.lock"
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(lock, poll_interval=LOOK_SECONDS))
        except (OSError, NotImplementedError) as error:
            sys.stderr.write(f"{lock} cannot be locked, so that each rank may download {spec.path!r}: {error}\n")
        yield


@contextmanager
def _telling(spec: ModelSpec, told: Told | None) -> Iterator[None]:
    """Inside the block the size of the files in the cache is told once a second, by a thread.

    Files of other commits are not counted, which the cache may hold as well. Where the hub does not say which files
    belong to this commit, those that were there at the beginning are not.
    """
    if told is None:
        yield
        return
    ended, before = threading.Event(), sum(_blobs_here(spec).values())

    def tell() -> None:
        if ended.wait(TELL_SECONDS):
            return  # what is here already needs no telling
        wanted = _wanted_blobs(spec)
        of_all = None if wanted is None else sum(wanted.values())
        told(_bytes_here(spec, wanted, before), of_all)
        while not ended.wait(TELL_SECONDS):
            told(_bytes_here(spec, wanted, before), of_all)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wanted_blobs(spec: ModelSpec) -> dict[str, int] | None:
    """Names in the cache and bytes of the files that are downloaded, as the hub says; None if it does not."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(spec.path, revision=spec.pinned_revision, files_metadata=True)
    except Exception:  # noqa: BLE001 - the download itself says what is wrong
        return None
    wanted: dict[str, int] = {}
    for sibling in found.siblings or ():
        if not _is_wanted(sibling.rfilename):
            continue
        name = sibling.blob_id if sibling.lfs is None else sibling.lfs.sha256
        if name is None or sibling.size is None:
            return None
        wanted[name] = sibling.size
    return wanted


def _is_wanted(name: str) -> bool:
    wanted, unwanted = (any(fnmatch(name, each) for each in some) for some in (IDENTIFYING_FILES, OF_OTHERS))
    return wanted and not unwanted


def _bytes_here(spec: ModelSpec, wanted: Mapping[str, int] | None, before: int) -> int:
    """Bytes of the wanted files that are in the cache; where nobody knows which these are, of all over those before."""
    here = _blobs_here(spec)
    return sum(here.values()) - before if wanted is None else sum(here.get(name, 0) for name in wanted)


def _blobs_here(spec: ModelSpec) -> dict[str, int]:
    """Names and bytes of a repository's files in the cache, of those that are not complete as well."""
    sizes: dict[str, int] = {}
    for path in (_folder_of(spec) / "blobs").glob("*"):
        name = path.name.partition(".")[0]  # x.incomplete or x.123.incomplete becomes x
        try:
            sizes[name] = max(sizes.get(name, 0), path.stat().st_size)
        except FileNotFoundError:
            continue  # it has just got its final name
    return sizes


def _folder_of(spec: ModelSpec, within: str = "") -> Path:
    """The folder of a repository in the cache, or within a folder of the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / within / repo_folder_name(repo_id=spec.path, repo_type="model")
