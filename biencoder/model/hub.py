"""A trained model's folder on the Hugging Face hub, where huggingface_hub puts it.

The token is the one that huggingface_hub has: HF_TOKEN, or what `hf auth login` has stored. It is in no message.
"""

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public in its documentation

from biencoder.errors import ConfigError, ModelError

_NAME = re.compile(r"[^/]+/[^/]+")
_ASK = {
    401: "it does not know the token; log in again with `hf auth login`",
    403: "the token may not write there; take one that may, or a name of your own",
    404: "it knows no such owner, or the token may not see it",
}


class Pushed(NamedTuple):
    url: str
    private: bool
    """Whether only its owners see it."""


def check_push(folder: Path, name: str) -> None:
    """Raise an error if it is clear beforehand that the model in this folder cannot be pushed to that name.

    Raises:
        ConfigError: it is no name of a repository, or there is no token.
        ModelError: the folder holds no model of this program.
    """
    if not (folder / "biencoder.json").is_file():
        raise ModelError(f"{folder} is no model of this program: it has no biencoder.json; give runs/<run>/model/best, say")
    try:
        validate_repo_id(name)
        right = bool(_NAME.fullmatch(name))
    except HFValidationError:
        right = False
    if not right:
        raise ConfigError(
            f"--push is {name!r}, expected OWNER/NAME of a repository on the hub (letters, digits, - _ and ., 96 at most)"
        )
    if get_token() is None:
        raise ConfigError("--push wants a token that may write to the hub: log in with `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str, *, private: bool) -> Pushed:
    """Upload a model's folder; the repository is made if it does not exist.

    Args:
        private: make it for its owners' eyes only; otherwise it is as the owner's settings on the hub have new ones, which
            is public unless an organization says otherwise. A repository that exists stays what it is.

    Raises:
        ConfigError: `private`, and the repository exists and is public.
        ModelError: the hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        is_private = bool(api.model_info(name).private)
        if private and not is_private:
            raise ConfigError(f"--private, but {name} exists and is public; choose another name, or change it on the hub")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model trained with biencoder")
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - the library's HTTP client raises kinds of its own
        raise ModelError(f"the model cannot be pushed to {name}: {_reason(error)}") from None
    return Pushed(str(url), is_private)


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it"
    said = " ".join(str(error).split())[:300].replace(get_token() or "\0", "…") or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"the hub answers {status}: {_ASK.get(status, said)}"
    return f"the hub cannot be reached ({said}); try again"
