"""The files of other codebases."""
