"""The packages of the wheel; everything else about the distribution is in pyproject.toml.

The files at the top level of a checkout go into kaiten/bundle. BentoML serves that folder as it
serves a checkout, and no module named `service` takes that name in site-packages.
"""

from setuptools import find_packages, setup

_PACKAGES = ("cli", "server", "gateway", "runners", "monitors", "lifecycle", "kaiten")
_BUNDLE = "kaiten.bundle"

setup(
    # By this name, setuptools leaves this file out of the bundle.
    script_name="setup.py",
    packages=[
        *find_packages(include=[*_PACKAGES, *(f"{name}.*" for name in _PACKAGES)]),
        _BUNDLE,
    ],
    package_dir={_BUNDLE: "."},
    package_data={_BUNDLE: ["kaiten.yaml", "configuration.yaml"]},
    # Otherwise every file of a source distribution would go into the bundle.
    include_package_data=False,
)
