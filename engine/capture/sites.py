"""The sites at which a model's residual stream can be read; loads no torch."""

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
    "resid_post": "the residual stream after a block, before any final norm",
    "resid_pre": "the residual stream before a block",
    "attn_out": "the attention output, as added to the residual stream",
    "mlp_out": "the MLP output, as added to the residual stream",
    "embed": "the input of block 0",
    "final_norm": "the output of the final norm",
}
_WITHOUT_LAYERS = ("embed", "final_norm")
BETWEEN_BLOCKS = ("resid_post", "resid_pre", "embed", "final_norm")
"""Sites that are read outside of the blocks' own code."""


def parse_site(site: str, layers: LayerSpec = None) -> str:
    """Validate a site name without a model.

    Args:
        site: Name of a site.
        layers: The requested layers.

    Returns:
        The name.

    Raises:
        RequestError: The site does not exist, or layers were requested for a site without layers.

    Example:
        >>> parse_site("attn_out", [3, 4])
        'attn_out'
    """
    if not isinstance(site, str) or site not in SITES:
        raise RequestError(f"there is no site {site!r}", expected=f"one of {', '.join(SITES)}")
    if site in _WITHOUT_LAYERS and not wants_all(layers):
        raise RequestError(
            f"the site {site!r} has no layers: it is {SITES[site]}, read once", next_step="omit the layers"
        )
    return site


def site_layers(site: str, layers: LayerSpec, num_layers: int) -> list[int]:
    """The layer numbers under which the states of a site are stored.

    Args:
        site: A name from `parse_site`.
        layers: See `parse_layers`.
        num_layers: Number of decoder blocks, n.

    Returns:
        Layer numbers, ascending; for a site without layers, the adjoining block: 0 or n - 1.

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
    """Resolve a site and layers against a checked model.

    Args:
        site: Name of a site.
        layers: See `parse_layers`.
        receipt: Result of the model's load check.

    Returns:
        See `site_layers`.

    Raises:
        RequestError: The model does not have the layers.
        ModelError: The model does not have the site.
    """
    require_site(site, receipt)
    return site_layers(site, layers, receipt["num_layers"])


def available_sites(receipt: Receipt) -> list[str]:
    """The sites of a model, according to its load check."""
    parts = {"attn_out": receipt["attn_out"], "mlp_out": receipt["mlp_out"], "final_norm": receipt["final_norm"]}
    return [site for site in SITES if parts.get(site, "") is not None]


def require_site(site: str, receipt: Receipt) -> None:
    """Refuse a site that a model does not have.

    Raises:
        ModelError: The model does not have the site; the message says why and lists the available sites.
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
        return "no two submodules of its blocks satisfy resid_pre + attn_out + mlp_out = resid_post"
    return f"{'the attention' if site == 'attn_out' else 'the MLP'} is not the same submodule in every block"


def find_taps(site: str, layers: list[int], blocks: Blocks, receipt: Receipt) -> dict[int, Tap]:
    """Find the modules at which to read a site.

    Args:
        site: A site that the model has.
        layers: Layer numbers from `site_layers`.
        blocks: The decoder blocks of the model.
        receipt: Result of its load check.

    Returns:
        Layer to the module whose output, or input, is read.
    """
    from engine.models.forward import Tap, stream_tap

    if site == "resid_post":
        return {layer: stream_tap(blocks, layer) for layer in layers}
    if site == "final_norm" and blocks.final_norm is not None:
        return {layer: Tap(blocks.final_norm, repeats=True) for layer in layers}
    part = {"attn_out": receipt["attn_out"], "mlp_out": receipt["mlp_out"]}.get(site) or ""  # "" means the block itself
    before = site in ("resid_pre", "embed")
    return {layer: Tap(blocks.blocks[layer].get_submodule(part), before) for layer in layers}
