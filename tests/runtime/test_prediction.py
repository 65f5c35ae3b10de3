"""What a prediction shows, and what programs get of it."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest

from crossmost.runtime.prediction import Prediction


def prediction(**changes):
    facts = {
        "label": "mug",
        "score": 0.934,
        "top_k": (("mug", 0.934), ("bowl", 0.04), ("vase", 0.02), ("jar", 0.006)),
        "embedding": np.ones(4, np.float32) / 2,
        "similarity": 0.4,
        "unknown": False,
        "timings": {"encode": 0.01, "total": 0.0125},
    }
    return Prediction(**{**facts, **changes})


def test_the_repr_is_a_line_of_what_matters():
    assert repr(prediction()) == "Prediction(label='mug', score=0.93, next=bowl 0.04, vase 0.02, ms=12.5)"
    assert repr(prediction(unknown=True, dropped=3, top_k=(("mug", 0.1),), timings={})) == (
        "Prediction(label='mug', score=0.93, unknown=True, dropped=3)"
    )


def test_programs_get_json():
    assert json.loads(json.dumps(prediction().to_dict())) == {
        "label": "mug",
        "score": 0.934,
        "top_k": [["mug", 0.934], ["bowl", 0.04], ["vase", 0.02], ["jar", 0.006]],
        "similarity": 0.4,
        "unknown": False,
        "dropped": 0,
        "points": 0,
    }


def test_it_is_frozen_and_can_be_sent_to_another_process():
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction().label = "bowl"
    assert pickle.loads(pickle.dumps(prediction())).to_dict() == prediction().to_dict()
