"""Label-free adaptation and deployment of zero-shot 3D classifiers.

Importing this package is free: nothing heavy is loaded until a sub-package is used, so that
`import crossmost.runtime` costs a robot nothing but numpy.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "runtime" / "preprocess.py").is_file():
    # In a checkout `crossmost.runtime` lives beside this folder. With the checkout as working directory this
    # folder would otherwise shadow an installed crossmost that does hold `runtime`.
    __path__.append(str(_checkout))

try:
    __version__ = version("crossmost")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+checkout"

__all__ = ["__version__"]
