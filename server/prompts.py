"""Prompts: three studies that a person can start from a menu."""

from typing import Annotated, Any

from mcp.server import MCPServer
from pydantic import Field


def add_prompts(app: MCPServer[Any]) -> None:
    """Offer the studies.

    Args:
        app: The server.
    """

    @app.prompt(title="Find a concept's layers")
    def find_layers(
        concept: Annotated[str, Field(description="A concept, e.g. honesty")],
        model: Annotated[str, Field(description="A model, e.g. smollm2")] = "smollm2",
    ) -> str:
        """Find the layers of a model that carry a concept, and say how sure that is."""
        return (
            f"Find the layers of the model {model!r} that carry the concept {concept!r}.\n"
            "1. list_concepts: is it there? If not, define_concept, with 12 personas that differ in nothing else.\n"
            f"2. capture_contrast(concept={concept!r}, model={model!r}); if it answers with a job, wait_for_job.\n"
            "3. rank_layers: report the leading layer with its interval, every layer tied with it, and p.\n"
            "4. describe_capture: report each confound, and say so if one could explain the result.\n"
            "5. plot_capture, and inspect_layer at the leading layer: which pairs point the wrong way, and why?\n"
            "   inspect_layer with against=LAYER says why one layer is ranked above another.\n"
            "Do not call a layer best that is tied; say plainly if nothing was found."
        )

    @app.prompt(title="Compare two concepts")
    def compare_concepts(
        one: Annotated[str, Field(description="A concept, e.g. honesty")],
        other: Annotated[str, Field(description="Another, e.g. empathy")],
        model: Annotated[str, Field(description="A model, e.g. smollm2")] = "smollm2",
    ) -> str:
        """Find out whether two concepts share a direction in a model."""
        return (
            f"Compare the concepts {one!r} and {other!r} in the model {model!r}.\n"
            f"1. capture_contrast for each, with the same model, positions and site.\n"
            "2. rank_layers for each: at which layers can both be trusted?\n"
            "3. compare_captures: at those layers, is the cosine beyond random_within, and how near to halves_reach?\n"
            "4. plot_capture with compare_with, and describe the picture.\n"
            "Say what the cosine means only where both concepts separate better than shuffled labels."
        )

    @app.prompt(title="Audit a contrast for confounds")
    def audit_contrast(capture: Annotated[str, Field(description="Name of a capture")]) -> str:
        """Check what could explain a contrast other than its concept."""
        return (
            f"Audit the capture {capture!r} for confounds.\n"
            f"1. describe_capture(name={capture!r}, detail='full'): length, token read, topic words, all words.\n"
            "2. Read the example prompts of both sides: what differs besides the concept? Valence, politeness?\n"
            f"3. rank_layers(name={capture!r}, detail='full'): which left-out factor is worst, and by how much?\n"
            "4. inspect_layer at the leading layer: do the wrong pairs share a persona, template or topic?\n"
            "5. Propose better pairs, define_concept and capture them, and compare_captures with the first."
        )
