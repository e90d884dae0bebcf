"""Uploads an exported folder to a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class PushError(ValueError):
    """The hub cannot be written to. The message says what to do."""


class HubRepository:
    """A repository that this user may write to, checked before the export begins.

    Args:
        name: ``owner/name``.
        api: Client of huggingface_hub; None makes one for ``HF_ENDPOINT``.

    Raises:
        PushError: The name is invalid, nobody is logged in, the hub refuses the token or cannot be reached.
    """

    def __init__(self, name: str, api: Any = None) -> None:
        from huggingface_hub import HfApi, constants, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise PushError(f"--push {name}: not the name of a repository, which is owner/name: {error}") from error
        if constants.HF_HUB_OFFLINE:
            raise PushError(f"--push {name}: HF_HUB_OFFLINE forbids to ask the hub; unset it")
        if get_token() is None:
            raise PushError(
                f"--push {name}: there is no token of the hub; log in with 'hf auth login', or set HF_TOKEN to a token "
                "that may write"
            )
        self.name = name
        self._api = api or HfApi()
        self._answer_of("the hub does not take the token", lambda: self._api.whoami())

    def upload(self, folder: Path) -> str:
        """Upload the folder's files. The repository is created as a private one if it does not exist.

        Returns:
            The address of the repository.

        Raises:
            PushError: The hub refuses the upload. The folder stays.
        """
        what = f"{folder} is written and was not uploaded"
        url = self._answer_of(
            what, lambda: self._api.create_repo(self.name, repo_type="model", private=True, exist_ok=True)
        )
        self._answer_of(
            what,
            lambda: self._api.upload_folder(
                repo_id=self.name, repo_type="model", folder_path=str(folder), commit_message="Upload by tuneoff export"
            ),
        )
        return str(url)

    def _answer_of(self, what: str, call: Any) -> Any:

        try:
            return call()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise PushError(f"--push {self.name}: {what}: {type(error).__name__}: {reason}") from error
