"""The version of layerscope, in one place: packaging reads it here, so that a checkout that is not installed has it."""

VERSION = "0.2.0"
