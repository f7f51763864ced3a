"""What can be read of a model, and where: the sites of its residual stream.

Knows names, layers and parts of a model. Does not know how a part is read, and loads without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.capture.selection import LayerSpec, parse_layers, wants_all
from engine.errors import ModelError, RequestError

if TYPE_CHECKING:
    from engine.models.forward import Tap
    from engine.models.structure import Blocks
    from engine.records.models import Receipt

DEFAULT_SITE = "resid_post"
SITES = {
    "resid_post": "the stream after a block, before any final norm",
    "resid_pre": "the stream that a block takes in",
    "attn_out": "what a block's attention adds to the stream",
    "mlp_out": "what a block's feed-forward adds to the stream",
    "embed": "what enters block 0",
    "final_norm": "what the final norm puts out",
}
_WITHOUT_LAYERS = ("embed", "final_norm")


def parse_site(site: str, layers: LayerSpec = None) -> str:
    """Check what a user writes before any model is there.

    Args:
        site: A name.
        layers: The layers asked for, which some sites do not have.

    Returns:
        The name.

    Raises:
        RequestError: There is no such site, or it has no layers and some were asked for.

    Example:
        >>> parse_site("attn_out", [3, 4])
        'attn_out'
    """
    if not isinstance(site, str) or site not in SITES:
        raise RequestError(f"there is no site {site!r}", expected=f"one of {', '.join(SITES)}")
    if site in _WITHOUT_LAYERS and not wants_all(layers):
        raise RequestError(
            f"the site {site!r} has no layer: it is {SITES[site]}, read once", next_step="leave out the layers"
        )
    return site


def site_layers(site: str, layers: LayerSpec, num_layers: int) -> list[int]:
    """The keys that states of a site are stored under.

    Args:
        site: A name that `parse_site` returned.
        layers: See `parse_layers`.
        num_layers: Number of decoder blocks, n.

    Returns:
        Layer numbers, ascending; for a site without layers the block that it adjoins, 0 or n - 1.

    Raises:
        RequestError: See `parse_layers`.

    Example:
        >>> site_layers("resid_pre", "10-12", 30), site_layers("final_norm", None, 30)
        ([10, 11, 12], [29])
    """
    if site in _WITHOUT_LAYERS:
        return [0 if site == "embed" else num_layers - 1]
    return parse_layers(layers, num_layers)


def wanted_layers(site: str, layers: LayerSpec, receipt: Receipt) -> list[int]:
    """What of a model is read when a user asks for a site and layers.

    Args:
        site: What the user wrote.
        layers: See `parse_layers`.
        receipt: The model's check at load.

    Returns:
        See `site_layers`.

    Raises:
        RequestError: These make no sense for it.
        ModelError: It does not have the site.
    """
    require_site(site, receipt)
    return site_layers(site, layers, receipt["num_layers"])


def available_sites(receipt: Receipt) -> list[str]:
    """The sites that a model has, by its check at load."""
    parts = {"attn_out": receipt["attn_out"], "mlp_out": receipt["mlp_out"], "final_norm": receipt["final_norm"]}
    return [site for site in SITES if parts.get(site, "") is not None]


def require_site(site: str, receipt: Receipt) -> None:
    """Refuse a site that a model does not have.

    Raises:
        ModelError: The message says why, and what can be read instead.
    """
    if site not in available_sites(receipt):
        raise ModelError(
            f"this model has no site {site!r}: {_why_missing(site, receipt)}",
            next_step=f"read one of {', '.join(available_sites(receipt))}",
        )


def _why_missing(site: str, receipt: Receipt) -> str:
    if site == "final_norm":
        return "no norm was found after its last block"
    if receipt["attn_out"] is None and receipt["mlp_out"] is None:
        return "resid_pre + attn_out + mlp_out gives resid_post for no two parts that all its blocks have"
    return f"{'attention' if site == 'attn_out' else 'the feed-forward'} is not the same part in each of its blocks"


def find_taps(site: str, layers: list[int], blocks: Blocks, receipt: Receipt) -> dict[int, Tap]:
    """Where to read a site.

    Args:
        site: A site that the model has.
        layers: What `site_layers` returned.
        blocks: The parts of the model.
        receipt: Its check at load.

    Returns:
        Layer to the part of the model that puts the states out, or takes them in.
    """
    from engine.models.forward import Tap, stream_tap

    if site == "resid_post":
        return {layer: stream_tap(blocks, layer) for layer in layers}
    if site == "final_norm" and blocks.final_norm is not None:
        return {layer: Tap(blocks.final_norm, repeats=True) for layer in layers}
    part = {"attn_out": receipt["attn_out"], "mlp_out": receipt["mlp_out"]}.get(site) or ""  # "" is the block itself
    before = site in ("resid_pre", "embed")
    return {layer: Tap(blocks.blocks[layer].get_submodule(part), before) for layer in layers}
