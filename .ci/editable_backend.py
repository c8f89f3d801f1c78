"""setuptools as pyproject.toml's build backend, for editable installations only.

A wheel would write the rooms' names into site-packages: a folder `kernels` there is Hugging Face's.
"""

from setuptools.build_meta import (  # noqa: F401
    build_editable,
    get_requires_for_build_editable,
    prepare_metadata_for_build_editable,
)


def build_wheel(*_args, **_named):
    raise SystemExit("error: this project runs from its checkout: make setup, or pip install -e '.[all]'")


# Asked for first: so pip ends before it has downloaded anything.
build_sdist = prepare_metadata_for_build_wheel = build_wheel
get_requires_for_build_wheel = get_requires_for_build_sdist = build_wheel
