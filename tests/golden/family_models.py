"""Small models of all families, or variants of them, of which the golden data has none."""

from __future__ import annotations

from dense_models import DENSE
from expert_models import SPARSE
from family_model import FamilyModel
from recurrent_models import RECURRENT

MODELS: dict[str, FamilyModel] = {**DENSE, **SPARSE, **RECURRENT}
