"""What a worker that embeds windows does at its start: torch set to repeat itself, the encoder by the name that a
request gives, an embedder that the whole job shares.

May import: jos.worker, actors.{choose,embedder,encoders,model_file}, torch. Tests: tests/unit/test_fine_tune.py,
tests/unit/test_machine_state.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from actors.choose import AUTO
from actors.embedder import Embedder
from actors.encoders import ENCODERS
from actors.model_file import pack, unpack
from jos.worker import Context, JobImpossible

_SHARED = "embedder"


def steady(threads: int) -> None:
    """Results that do not vary: who wins must not be decided by ten bits of mantissa, nor by the order of a sum."""
    torch.set_num_threads(max(1, threads))
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def encoder_of(model_type: str, stand_in: str) -> str:
    """The encoder that a request asks for; `stand_in` for the hosted service's own models, which are not open.
    Raises JobImpossible."""
    if model_type.startswith("omega"):
        return stand_in
    if model_type != AUTO and model_type not in ENCODERS:
        known = ", ".join([*sorted(ENCODERS), AUTO])
        raise JobImpossible(f"Unknown model_type {model_type!r}.", suggestion=f"Known: {known}, omega_*.")
    return model_type


def tell_substitute(context: Context, model_type: str, encoder: str) -> None:
    """Says once if another encoder runs than was asked for."""
    if encoder == model_type:
        return
    runs = "an encoder that JOS chooses for the data" if encoder == AUTO else f"the {encoder} encoder"
    context.warn(
        "model.substituted",
        f"{model_type} is not an open model: {runs} runs instead.",
        model_type=model_type,
        encoder=encoder,
    )


def shared(context: Context, fit: Callable[[], Embedder]) -> Embedder:
    """The job's embedder: fitted by the first index that asks, the very same on all others and in later attempts.
    Raises JobImpossible."""

    def make() -> bytes:
        embedder = fit()
        return pack({"kind": _SHARED, "settings": embedder.settings()}, embedder.tensors())

    try:
        content, tensors = unpack(context.once(_SHARED, make), "the job's encoder")
        return Embedder.restore(content["settings"], tensors, context.device)
    except ValueError as error:
        raise JobImpossible(
            f"No encoder can be fitted on the labelled files: {error}.",
            suggestion="Look for numbers that no sensor gives, such as placeholders near 1e308, and take them out.",
        ) from None
