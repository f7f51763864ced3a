"""Show `Example:` sections as code in the API reference.

The parser of griffe only recognizes `Examples:`.
"""

import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Renames the section as docstrings are read."""

    def on_object(self, *, obj: griffe.Object, **_options: Any) -> None:  # noqa: ANN401 - as griffe declares it
        """Called with every object that has been read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
