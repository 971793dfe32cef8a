"""Results that are read are refused where their fields contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from .makers import MAKERS, strict

CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("rank", {"tol": -1.0}),
    ("rank", {"tol": "nan"}),
    ("rank", {"rank": 3, "lower": 3}),
    ("rank", {"lower": 3}),
    ("rank", {"upper": 3}),
    ("rank", {"ambiguous": True, "exact": True}),
    ("rank", {"counted_above": "luck"}),
    ("rank", {"method": "certified"}),
    ("rank", {"actual_bytes": -8}),
    ("rank of a batch", {"rank": [0, 0, 0], "lower": [0, 0, 0]}),
    ("rank by a tolerance", {"rank": 0}),
    ("rank certified", {"rank": 1, "lower": 1}),
    ("rank equilibrated", {"rank": 1, "lower": 1}),
    ("model rank", {"rank": -7}),
    ("model rank", {"n_params": 0}),
    ("model rank", {"lower": 8}),
    ("model rank", {"trace": [[3, -1]]}),
    ("model rank", {"saturated": False}),
    ("guarantee", {"rank": 3}),
    ("guarantee", {"holds": False}),
    ("guarantee", {"model_rank": 9}),
    ("guarantee", {"reason": "the rank on 9 samples is 3, that of the model 7"}),
    ("guarantee", {"proved": False}),
    ("verdict", {"valid": False}),
    ("verdict", {"reason": "the samples differ from those of the certificate"}),
    ("verdict", {"checked": False}),
    ("dimension", {"lower": 50}),
    ("dimension", {"upper": 50}),
    ("dimension", {"terms": []}),
    ("dimension", {"n_params": -1}),
    ("stratification", {"rows": [{"rank": 99, "text": "x", "status": "exact"}]}),
    ("points", {"lower": 50}),
    ("points", {"outputs": -1}),
    ("bounds", {"lower": 4}),
    ("bounds", {"lower": -1}),
    ("check", {"tangent": "neither"}),
    ("check", {"excess": {"lower": 1, "upper": 2}}),
    ("rank bounds", {"lower": 99}),
    ("rank bounds", {"rows": []}),
    ("lift status", {"difference": 1.0}),
    ("lift status", {"contained": False}),
    ("lifted points", {"starts": 0}),
    ("independence", {"upper": 9}),
    ("independence", {"basis": [7]}),
    ("criticality", {"relative": 3.0}),
    ("criticality", {"sigma": -1.0}),
    ("rate", {"fastest": 0.0}),
    ("rate", {"rank": 99}),
    ("rate", {"n_samples": 7}),
    ("flow", {"times": [2.0, 1.0, 0.0]}),
    ("hessian", {"index": 4}),
    ("hessian", {"tolerance": -1.0}),
    ("hessian", {"tolerance": 1e9}),
    ("hessian", {"nullity": 4}),
    ("hessian", {"nullity": None}),
    ("hessian", {"n_params": 5}),
    ("hessian", {"eigenvalues": [4.0, 3.0, 2.0, 1.0]}),
    ("embedded spectrum", {"new_negative": 9}),
    ("branch", {"dimension": 99}),
    ("branch", {"copies": [1, 2]}),
    ("branches", {"width": 9}),
    ("branches", {"n_params": 99}),
    ("reduction", {"widths": [9, 1, 1]}),
    ("tally", {"done": 9}),
    ("tally", {"failed": -1}),
    ("tally", {"now": 5}),
    ("condensation", {"effective": 9}),
    ("narrow", {"relative": -1.0}),
    ("recovery", {"train_error": -1.0}),
    ("recovery", {"width": 2}),
    ("fit of a width", {"width": 9}),
    ("training", {"diverged": [True, True, True], "converged": [True, True, True]}),
    ("history", {"at": [3, 2, 1, 0]}),
    ("plan", {"nbytes": 8}),
    ("embedding", {"n_narrow": -4}),
]


@pytest.mark.parametrize(("name", "change"), CONTRADICTIONS)
def test_fields_that_contradict_each_other(
    results: dict[str, Any], name: str, change: dict[str, Any]
) -> None:
    """Each change is of the right type, so that only the other fields tell that it is wrong."""
    kind, content = type(results[name]), strict(results[name].to_dict(spectrum=True))
    assert set(change) <= set(content)
    derived = set(kind._also) - {"activation"}
    content = {key: value for key, value in content.items() if key not in derived}
    kind.from_dict(content)
    with pytest.raises(ValueError, match=rf"{kind.__name__}"):
        kind.from_dict(content | change)


def test_the_message_names_the_fields(results: dict[str, Any]) -> None:
    kind, content = type(results["dimension"]), results["dimension"].to_dict()
    with pytest.raises(
        ValueError, match="'lower' is 50 and 'upper' is 10; expected lower <= upper"
    ):
        kind.from_dict(content | {"lower": 50, "upper": 10})
    with pytest.raises(ValueError, match="'n_params' of Dimension is -1; expected no negative"):
        kind.from_dict(content | {"n_params": -1})


def test_negative_integers_are_refused_in_every_result(results: dict[str, Any]) -> None:
    for name in MAKERS:
        kind, content = type(results[name]), strict(results[name].to_dict(spectrum=True))
        for key, value in content.items():
            if type(value) is int and key not in (*kind._also, *kind._signed):
                with pytest.raises(ValueError, match=kind.__name__):
                    kind.from_dict(content | {key: -1})
