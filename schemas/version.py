"""The version of this project. Every other place reads it from here: pyproject.toml, the command line, the API."""

VERSION = "0.2.0"
