"""The version of layerscope.

Packaging reads it from here, so a checkout that is not installed knows its version too.
"""

VERSION = "0.2.0"
