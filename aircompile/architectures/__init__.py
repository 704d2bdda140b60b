"""Model families: each file builds the operator graph of one from the metadata and tensors of a model file.

A family is a function under ``@family(architecture names)``, which is all it takes to add one: the modules of this
package are imported by themselves. What families share is in `toolkit`.
"""

from __future__ import annotations

import importlib
import pkgutil

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.registry import FAMILIES
from aircompile.frontends.gguf import GGUFModel
from aircompile.graph import Graph
from airrun.errors import ModelFileError, UnsupportedError

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build_graph(model: GGUFModel, ctx_size: int | None = None) -> Graph:
    """Build the graph of a model, unfused and checked.

    Parameters
    ----------
    ctx_size
        Tokens that a session is to hold, where that is decided: positions of some models are scaled by it.

    Raises
    ------
    ModelFileError
        Hyperparameters or tensors are missing, absurd, of the wrong shape, or not understood.
    UnsupportedError
        An architecture, or a variant of one, that is not implemented.
    """
    path = model.files[0].path
    # adapters and projectors carry the architecture of the model that they belong to
    kind = model.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"{path}: general.type is {kind!r:.80}; only 'model' can be compiled")
    name = model.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelFileError(f"{path}: general.architecture is {'missing' if name is None else 'not a text'}")
    build = FAMILIES.get(name)
    if build is None:
        raise UnsupportedError(
            f"{path}: architecture {name!r:.80} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    builder = Builder(model, name, ctx_size)
    build(builder)
    graph = builder.finish()
    graph.check()
    return graph
