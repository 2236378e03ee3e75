"""The plug-in: vLLM calls `register` in its front end, its core and every worker."""

from __future__ import annotations

import logging

TESTED = ("0.32.0",)  # versions of vLLM that the tests of the engine were run on
logger = logging.getLogger(__name__)


def register() -> None:
    """Put the hooks in.

    Nothing changes until a request asks. Where this version of vLLM was not tested, or lacks what
    a hook needs, requests that ask are refused with the reason.

    Raises:
        RuntimeError: requests cannot even be refused: the engine does not start then, rather than
            answer unsteered.
    """
    from vrga.engine.hooks import (
        hook_admission,
        hook_attention,
        hook_prefix_cache,
        hook_rebinding,
        hook_reports,
        hook_runner,
    )
    from vrga.engine.request import read_request

    read_request(None)  # a server-wide default that is none stops the server
    refusal = untested()
    if refusal is None:
        try:
            for hook in (
                hook_attention, hook_rebinding, hook_runner, hook_reports, hook_prefix_cache,
            ):  # fmt: skip
                hook()
        except Exception as error:
            refusal = f"the plug-in could not be put in ({type(error).__name__}: {error})"
            logger.exception("vrga: requests that ask to be steered will be refused")
    else:
        logger.warning("vrga: requests that ask to be steered will be refused: %s", refusal)
    try:
        hook_admission(refusal)
    except Exception as error:
        raise RuntimeError(
            f"vrga cannot see requests in vLLM {_version()} ({error}), and would answer those "
            "that ask to be steered unsteered: uninstall vrga here, or install a tested "
            f"version: {', '.join(TESTED)}"
        ) from error


def untested() -> str | None:
    """Why this version of vLLM is not used; None where it was tested."""
    found = _version()
    if found in TESTED:
        return None
    return (
        f"vLLM {found} was not tested with this version of vrga; tested: {', '.join(TESTED)}. "
        "Install one of these"
    )


def _version() -> str:
    import vllm

    return vllm.__version__.partition("+")[0]
