"""Every result survives dictionaries, files, pickles and copies, to the last bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import pickle
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import llr
from llr import landscape, recovery
from llr.landscape import HessianSpectrum
from llr.recovery import Recovery
from llr.results import Record, Shown

from .makers import ALL, MAKERS, REPRODUCED, certified, net, points, strict

_DRAWN = {
    *("model rank", "model rank not saturated", "stratification", "branches", "hessian"),
    *("hessian of zeros", "embedded spectrum", "flow", "recovery", "recovery that fails"),
    *("recovery from noise", "history", "training with its history", "lifted point"),
}


def same(one: Any, two: Any) -> bool:
    """Equality of all that a result holds, bit by bit."""
    if isinstance(one, Tensor):
        if not isinstance(two, Tensor) or (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        return one.detach().numpy().tobytes() == two.detach().numpy().tobytes()
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", two)
    if isinstance(one, nn.Module):
        states = (one.state_dict(), two.state_dict())
        return repr(one) == repr(two) and one.training == two.training and same(*map(dict, states))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return all(
            same(getattr(one, f.name), getattr(two, f.name))
            for f in dataclasses.fields(one)
            if f.name != "probe"
        )
    return bool(one == two)


def test_there_is_a_maker_for_every_result(results: dict[str, Any]) -> None:
    def below(cls: type) -> set[type]:
        found = {cls} if cls.__module__.startswith("llr.") else set()
        return found.union(*(below(child) for child in cls.__subclasses__()))

    assert below(Shown) - {Shown, Record} == {type(results[name]) for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_text(results: dict[str, Any], name: str) -> None:
    result = results[name]
    assert "\n" not in repr(result)
    assert "tensor(" not in repr(result)
    assert len(repr(result)) > 3 or type(result).__name__ in ("Bounds", "RankBounds")
    assert type(result).__str__ is not object.__str__
    assert f"{result}" == str(result)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("spectrum", [True, False])
def test_dictionaries(results: dict[str, Any], name: str, spectrum: bool) -> None:
    result = results[name]
    content = strict(result.to_dict(spectrum=spectrum))
    again = type(result).from_dict(content)
    if spectrum:
        assert same(again, result)
    assert type(result).from_dict(result.to_dict(spectrum=spectrum)).to_dict(spectrum) == content
    assert str(again) == str(result) or not spectrum
    assert "\n" not in repr(again)
    assert again._repr_html_()


@pytest.mark.parametrize("name", MAKERS)
def test_files(results: dict[str, Any], name: str, tmp_path: Path) -> None:
    result, path = results[name], tmp_path / "result.json"
    result.save(path)
    assert same(type(result).load(path), result)
    assert json.loads(path.read_text())["type"] == type(result).__name__
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("name", ALL)
def test_pickles_and_copies(results: dict[str, Any], name: str) -> None:
    result = results[name]
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        assert same(again, result)
        assert str(again) == str(result)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_wrong_is_refused_by_name(results: dict[str, Any], name: str) -> None:
    result = results[name]
    kind, content = type(result), strict(result.to_dict(spectrum=True))
    # A long tensor that "tensors" says to be empty may have been left out.
    optional = {"tensors", *kind._also, *(set(kind._long) & set(content.get("tensors", {})))}
    for key in content:
        if key not in optional:
            with pytest.raises(ValueError, match=rf"the field '{key}' is missing|{key} of"):
                kind.from_dict({k: v for k, v in content.items() if k != key})
        for wrong in ({"a": object()}, [[object()]], "<script>", object()):
            if wrong == "<script>" and (content[key] is None or isinstance(content[key], str)):
                continue  # text is text
            with pytest.raises(ValueError, match=key):
                kind.from_dict(content | {key: wrong})
    with pytest.raises(ValueError, match="'surprise' is unknown"):
        kind.from_dict(content | {"surprise": 1})
    for wrong in (None, [], "{}", 3):
        with pytest.raises(ValueError, match=kind.__name__):
            kind.from_dict(wrong)  # type: ignore[arg-type]


WRONG = [
    *(None, True, -1, 0, 3, 10**30, 1.5, -0.0, 1e308, "", "x", "inf", "nan", "3/8", "1/0"),
    *([], [1], [[1.0]], {}, {"a": 1}),
]
CASES = int(os.environ.get("LLR_RANDOM_CASES", "8"))


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    parts = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in parts[:6] if isinstance(content, list) else parts:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_accepted_can_be_shown(results: dict[str, Any], name: str) -> None:
    """A dictionary with one value changed or missing is refused, or makes a result that prints."""
    result, rng = results[name], random.Random(name)
    for case in range(CASES):
        content = copy.deepcopy(strict(result.to_dict(spectrum=bool(case % 3))))
        *path, last = rng.choice(list(places(content)))
        inner = content
        for key in path:
            inner = inner[key]
        if rng.random() < 0.1:
            del inner[last]
        else:
            inner[last] = rng.choice(WRONG)
        try:
            made = type(result).from_dict(content)
        except ValueError:
            continue
        assert "\n" not in repr(made)
        assert isinstance(str(made), str)
        assert made._repr_html_()
        assert strict(made.to_dict(spectrum=True))


class TestRank:
    def test_left_out_and_asked_for(self) -> None:
        result = llr.rank(net(1, 2, 1), points(9))
        assert "spectrum" not in result.to_dict()
        assert result.to_dict(spectrum=True)["spectrum"] == result.spectrum.tolist()
        again = llr.RankResult.from_dict(result.to_dict())
        assert not again.kept("spectrum")
        assert again.spectrum.shape == (0,)
        assert "singular values not kept" in str(again)
        assert (again.rank, again.gap, again.exact) == (result.rank, result.gap, result.exact)
        with pytest.raises(ValueError, match="the spectrum of this RankResult was not kept"):
            again.plot()

    def test_a_batch_keeps_its_shape(self) -> None:
        result = llr.numerical_rank(torch.zeros(2, 0, 3, 4))
        again = llr.RankResult.from_dict(result.to_dict())
        assert again.spectrum.shape == (2, 0, 0)
        assert str(again) == str(result)

    def test_an_empty_matrix_has_kept_everything(self) -> None:
        result = llr.RankResult.from_dict(llr.numerical_rank(torch.zeros(0, 2)).to_dict())
        assert result.kept("spectrum")
        assert result.plot().get_xlabel()

    def test_no_equilibration_is_not_one_left_out(self) -> None:
        plain = llr.numerical_rank(torch.eye(2))
        assert llr.RankResult.from_dict(plain.to_dict()).equilibrated is None
        apart = torch.tensor([[1e20, 0.0], [0.0, 1e-20]], dtype=torch.float64)
        again = llr.RankResult.from_dict(llr.numerical_rank(apart).to_dict())
        assert again.equilibrated is not None
        assert "equilibrated" in str(again)

    @pytest.mark.parametrize("gap", [math.inf, -math.inf, math.nan, -0.0, 5e-324, 1 / 3])
    def test_every_float_survives(self, gap: float) -> None:
        result = dataclasses.replace(llr.numerical_rank(torch.eye(2)), gap=gap)
        assert same(llr.RankResult.from_dict(strict(result.to_dict(True))), result)
        batch = dataclasses.replace(
            llr.numerical_rank(torch.eye(2)[None]), gap=torch.tensor([gap], dtype=torch.float64)
        )
        assert same(llr.RankResult.from_dict(strict(batch.to_dict(True))), batch)

    @pytest.mark.parametrize("key", ["clear", "exact"])
    def test_derived_values_are_checked(self, key: str) -> None:
        content = certified().to_dict()
        llr.RankResult.from_dict({k: v for k, v in content.items() if k != key})
        with pytest.raises(ValueError, match=f"'{key}'.*does not fit the other fields"):
            llr.RankResult.from_dict(content | {key: not content[key]})

    def test_shapes_have_to_agree(self) -> None:
        content = llr.numerical_rank(torch.zeros(2, 3, 3)).to_dict(spectrum=True)
        with pytest.raises(ValueError, match="'spectrum' of RankResult has shape"):
            llr.RankResult.from_dict(content | {"spectrum": [0.0, 0.0, 0.0]})
        with pytest.raises(ValueError, match="'tol' of RankResult has not the shape of rank"):
            llr.RankResult.from_dict(content | {"tol": 0.5})

    def test_the_checks_of_a_certificate_stay(self, tmp_path: Path) -> None:
        result = certified()
        content = strict(result.to_dict(spectrum=True))
        content["certificate"]["structure"] = "another"
        with pytest.raises(ValueError, match="'certificate' of RankResult: checksum"):
            llr.RankResult.from_dict(content)
        result.save(tmp_path / "r.json")
        loaded = llr.RankResult.load(tmp_path / "r.json").certificate
        assert loaded == result.certificate
        assert llr.verify(loaded, net(1, 2, 1), points(9))

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            ({"spectrum": {"dtype": "float64", "shape": [5]}}, "shape of 'spectrum'"),
            ({"spectrum": {"dtype": "complex64", "shape": [2]}}, "dtype of 'spectrum'"),
            ({"spectrum": {"dtype": "bool", "shape": [2]}}, "not all of bool"),
            ({"spectrum": {"shape": [2]}}, "tensors of 'spectrum'"),
            ({"spectrum": {"dtype": "float64", "shape": [-2]}}, "shape of 'spectrum'"),
            ({"nobody": {"dtype": "float64", "shape": [2]}}, "'nobody' is unknown"),
            ([], "tensors is"),
        ],
    )
    def test_tensors_are_checked(self, told: Any, message: str) -> None:
        content = llr.numerical_rank(torch.eye(2)).to_dict(spectrum=True)
        with pytest.raises(ValueError, match=message):
            llr.RankResult.from_dict(content | {"tensors": told})


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[1]", "expected a JSON object"),
            ("{", "is not JSON"),
            ('{"format": "llr result 9"}', "format is 'llr result 9'"),
            ('{"format": "llr result 1", "type": "Plan"}', "type is 'Plan'; expected 'RankResult'"),
            ('{"format": "llr result 1", "type": "RankResult"}', "'rank' is missing"),
            ('{"format": NaN}', "has NaN, which is not JSON"),
            ('{"a": 1, "a": 2}', "'a' is there twice"),
            ("[" * 100_000, "nested too deeply|not JSON"),
            ("\x80", "JSON"),
        ],
    )
    def test_what_is_no_result(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "r.json"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=message) as refused:
            llr.RankResult.load(path)
        assert str(path) in str(refused.value)

    def test_pickles_are_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        path.write_bytes(pickle.dumps(llr.numerical_rank(torch.eye(2))))
        with pytest.raises(ValueError, match="is not JSON"):
            llr.RankResult.load(path)

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        llr.numerical_rank(torch.eye(2)).save(path)
        before = path.read_bytes()
        broken = dataclasses.replace(llr.numerical_rank(torch.eye(3)), method=b"no text")
        with pytest.raises(TypeError):
            broken.save(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("kind", [landscape.Rate, llr.RankResult, llr.Certificate])
    def test_missing_file(self, tmp_path: Path, kind: Any) -> None:
        with pytest.raises(FileNotFoundError, match=r"no such file.*none\.json"):
            kind.load(tmp_path / "none.json")
        with pytest.raises(ValueError, match="is a directory"):
            kind.load(tmp_path)

    @pytest.mark.parametrize("name", ["rank", "certificate"])
    def test_missing_directory(self, results: dict[str, Any], tmp_path: Path, name: str) -> None:
        with pytest.raises(FileNotFoundError, match=r"no directory .*new'; make it first.*r\.json"):
            results[name].save(tmp_path / "new" / "r.json")
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
    @pytest.mark.parametrize("name", ["rank", "certificate"])
    def test_pipes_and_devices(self, results: dict[str, Any], tmp_path: Path, name: str) -> None:
        """Opening a pipe without a reader would wait forever."""
        os.mkfifo(pipe := tmp_path / "pipe")
        for path in (pipe, os.devnull):
            with pytest.raises(OSError, match="is a device or a pipe; expected the name of a reg"):
                results[name].save(path)
            with pytest.raises(ValueError, match="not a file"):
                type(results[name]).load(path)


class TestNetworks:
    def test_a_recovered_network_computes_the_same(self, results: dict[str, Any]) -> None:
        found: Recovery = results["recovery"]
        again = Recovery.from_dict(strict(found.to_dict()))
        x = points(50)
        assert torch.equal(again.model(x), found.model(x))
        assert all(torch.equal(again.fits[w].model(x), f.model(x)) for w, f in found.fits.items())
        assert bool(again) == bool(found)

    @pytest.mark.parametrize(
        "model",
        [
            {"0.weight": [[1.0]]},
            {"0.weight": [[1.0]], "2.weight": [[1.0, 2.0]]},
            {"0.weight": [[1.0]], "0.bias": [1.0, 2.0], "2.weight": [[1.0]]},
            {"0.weight": [[None]], "2.weight": [[1.0]]},
            {"0.weight": "numpy", "2.weight": [[1.0]]},
            {"0.weight": [[1.0]], "2.weight": [[1.0]], "2.bias": [1.0, 2.0]},
            {"__class__": "os.system"},
        ],
    )
    def test_networks_that_do_not_fit(self, results: dict[str, Any], model: Any) -> None:
        content = strict(results["recovery"].to_dict())
        with pytest.raises(ValueError, match="model"):
            Recovery.from_dict(content | {"model": model})

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "Popen"},
            {"dtype": "float16"},
            {"layers": [{"weight": [[1.0]], "bias": None, "hook": "x"}]},
            {"layers": ["eval"]},
            {"layers": [{"polynomial": ["x"]}]},
            {"layers": [{"weight": [[1.0]], "bias": [1.0, 2.0]}]},
            {"training": "yes"},
        ],
    )
    def test_models_of_unknown_parts(self, results: dict[str, Any], change: Any) -> None:
        found = results["reduction"]
        content = strict(found.to_dict())
        with pytest.raises(ValueError, match="model"):
            type(found).from_dict(content | {"model": content["model"] | change})

    def test_an_embedding_stays_in_range(self, results: dict[str, Any]) -> None:
        content = strict(results["embedding"].to_dict())
        with pytest.raises(ValueError, match="source of Embedding has entries outside"):
            llr.embedding.Embedding.from_dict(content | {"source": [9] * len(content["source"])})


DRAWN = [name for name in MAKERS if name in _DRAWN or name.split(" ")[0] == "rank"]
DRAWN.remove("rank bounds")


class TestPlots:
    @pytest.mark.parametrize("name", DRAWN)
    def test_on_new_axes_and_on_given_ones(self, results: dict[str, Any], name: str) -> None:
        from llr.results.figures import new_figure  # noqa: PLC0415

        result = results[name]
        drawn = result.plot()
        drawn.figure.canvas.draw()
        ax = new_figure(7, 4).add_subplot()
        assert result.plot(ax) is ax
        assert result.plot(ax=ax).get_xlabel()
        ax.figure.canvas.draw()

    def test_what_was_not_kept(self, results: dict[str, Any]) -> None:
        for name, field in (("hessian", "eigenvalues"), ("embedded spectrum", "explained")):
            again = type(results[name]).from_dict(results[name].to_dict())
            with pytest.raises(ValueError, match=f"the {field} of this .* was not kept"):
                again.plot()
        again = type(results["history"]).from_dict(results["history"].to_dict())
        with pytest.raises(ValueError, match="the relative of this History was not kept"):
            again.plot()
        with pytest.raises(ValueError, match="no history to draw"):
            results["training"].plot()

    def test_what_is_not_a_number(self, results: dict[str, Any]) -> None:
        for name, field in (("rank", "spectrum"), ("hessian", "eigenvalues")):
            content = strict(results[name].to_dict(spectrum=True))
            content[field][0] = "nan"
            with pytest.raises(ValueError, match=f"no NaN in {field}"):
                type(results[name]).from_dict(content)
        history = results["history"]
        broken = dataclasses.replace(history, relative=history.relative * math.nan)
        with pytest.raises(ValueError, match="the relative of this History has NaN only"):
            broken.plot()

    def test_a_hessian_says_what_it_has_lost(self, results: dict[str, Any]) -> None:
        again = HessianSpectrum.from_dict(results["hessian"].to_dict())
        assert "eigenvalues not kept" in str(again)


def test_reproduction_names_its_files() -> None:
    assert REPRODUCED.to_dict()["figure"] == "a.png"


def test_numbers_of_numpy_do_not_come_in(results: dict[str, Any]) -> None:
    content = results["rate"].to_dict()
    with pytest.raises(ValueError, match="'rank' of Rate"):
        landscape.Rate.from_dict(content | {"rank": np.int64(3)})
    assert recovery
