"""Whether a model can be had from the Hugging Face hub, asked once and quickly before a download begins.

Without this, transformers tries an unreachable hub for half a minute for each file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import ModelError, Remedy

if TYPE_CHECKING:
    from engine.records.models import ModelSource

TIMEOUT_S = 10.0


def require_on_hub(source: ModelSource) -> None:
    """Ask the hub for a model it is to deliver.

    Raises:
        ModelError: The hub is out of reach, or has no such model or revision, or does not show it to this user.
    """
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(source.model_id, revision=source.revision, timeout=TIMEOUT_S)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise ModelError(
            f"the hub shows no model {source.model_id!r}",
            expected="a public model, or one whose licence you accepted while logged in",
            next_step=f"check the name at https://huggingface.co/{source.model_id}, then `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{source.model_id} has no revision {source.revision!r}", next_step="correct it in models.toml"
        ) from error
    except Exception as error:  # whatever HTTP library the hub's client is built on today
        raise ModelError(
            f"{source.model_id} is not on this machine and the hub is out of reach ({type(error).__name__})",
            expected="a connection to huggingface.co, or a model or folder that is already here",
            next_step=Remedy.LIST_MODELS,
        ) from error
