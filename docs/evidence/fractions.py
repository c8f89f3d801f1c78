"""How many triplets the prior needs: both demo models, as in controls.py."""

import runpy
from dataclasses import replace
from pathlib import Path

from eval.study import studies

_controls = runpy.run_path(str(Path(__file__).with_name("controls.py")))
STUDY = replace(
    _controls["STUDY"],
    name="fractions",
    description="How many triplets the prior needs",
    arms=_controls["of_both_models"](studies.fractions("demo")),
)
