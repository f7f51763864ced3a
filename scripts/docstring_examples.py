"""Let the API reference show the `Example:` section of a docstring as code; griffe's parser knows only `Examples:`."""

import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Renames the section as docstrings are read."""

    def on_object(self, *, obj: griffe.Object, **_options: Any) -> None:  # noqa: ANN401 - as griffe declares it
        """Called with every object that has been read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
