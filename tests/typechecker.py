"""Checks the annotations of the package, shapes included, at every call in the tests' process.

It must be installed before the package is imported.
"""

from collections.abc import Mapping

import jaxtyping
from beartype import BeartypeConf, beartype
from flax import struct
from ml_collections import ConfigDict

# By PEP 484 an int is a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install():
    Mapping.register(ConfigDict)  # it has all methods of a mapping, and does not say so
    # JAX rebuilds a PyTreeNode with whatever a function returned for its leaves (stacked arrays,
    # shapes, shardings), so the fields of one network are not checked at its construction.
    struct.PyTreeNode.__no_type_check__ = True
    jaxtyping.install_import_hook("mnist_cnn", "typechecker.check")
