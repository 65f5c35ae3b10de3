"""The options of a run: recipes, YAML, single assignments, and one line for whatever is wrong with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from crossmost.adaptation.pretrain import PretrainConfig
from crossmost.config import (
    NEEDS,
    SWITCHES,
    TrainConfig,
    make_config,
    parse_assignments,
    read_options,
    recipe_values,
    to_yaml,
    without_effect,
)
from crossmost.errors import InputError


def error_of(options: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        make_config(options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestRecipes:
    def test_the_default_is_the_crossmost_recipe(self) -> None:
        assert make_config({}) == make_config({"recipe": "crossmost"}) == TrainConfig()

    def test_the_reference_recipe_sets_every_switch_to_the_published_value(self) -> None:
        config = make_config({"recipe": "reference"})
        assert {name: getattr(config, name) for name in SWITCHES} == SWITCHES
        assert (config.strong_scale, config.strong_translation) == ((0.5, 2.0), 0.5)
        assert config.strong_dropout == 0.875

    def test_numbers_of_the_method_are_the_same_in_both(self) -> None:
        for recipe in ("crossmost", "reference"):
            config = make_config({"recipe": recipe})
            assert (config.layer_decay, config.weight_decay, config.warmup_epochs) == (0.65, 0.05, 1.0)
            assert (config.ema_start, config.ema_end, config.ema_ramp_steps) == (0.99, 0.9998, 400)
            assert (config.fairness_weight, config.mask_weight, config.global_local_weight) == (1.0, 1.0, 0.2)
            assert (config.alignment_weight, config.point_weight) == (1.0, 1.0)

    @pytest.mark.parametrize("switch", SWITCHES)
    def test_a_switch_can_be_flipped_in_either_recipe(self, switch: str) -> None:
        published, repaired = SWITCHES[switch], TrainConfig.model_fields[switch].default
        one = make_config({"recipe": "reference", switch: repaired})
        assert getattr(one, switch) == repaired
        others = [name for name in SWITCHES if name != switch]
        assert all(getattr(one, name) == SWITCHES[name] for name in others)
        assert getattr(make_config({switch: published}), switch) == published

    def test_what_is_given_wins_over_the_recipe_whatever_the_order(self) -> None:
        assert make_config({"threshold": "adaptive", "recipe": "reference"}).threshold == "adaptive"
        assert recipe_values("crossmost") == {"recipe": "crossmost"}


class TestYaml:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"recipe": "reference"},
            {"class_prior": (0.5, 0.25, 0.25), "learning_rate": 3e-4, "strong_scale": (0.9, 1.1)},
            {"mode": "agreement", "views": 12, "device": "cuda:1", "precision": "bfloat16"},
        ],
    )
    def test_what_is_printed_reads_back(self, tmp_path: Path, options: dict[str, Any]) -> None:
        config = make_config(options)
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert make_config(read_options(tmp_path / "config.yaml")) == config

    def test_every_option_is_printed_in_the_order_of_the_class(self) -> None:
        assert list(yaml.safe_load(to_yaml(TrainConfig()))) == list(TrainConfig.model_fields)

    def test_every_option_says_what_it_means(self) -> None:
        assert [name for name, field in TrainConfig.model_fields.items() if not field.description] == []

    def test_part_of_the_options_is_enough(self, tmp_path: Path) -> None:
        (tmp_path / "few.yaml").write_text("epochs: 3\nclass_prior: [0.5, 0.5]\n")
        config = make_config(read_options(tmp_path / "few.yaml"))
        assert (config.epochs, config.class_prior) == (3, (0.5, 0.5))
        assert config.batch_size == TrainConfig().batch_size

    @pytest.mark.parametrize(
        "content", [b"- epochs\n- 3\n", b"epochs", b"1: 2", b"epochs: [", b"\xff\xfe\x00", b""]
    )
    def test_a_file_without_options(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "wrong.yaml"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"wrong\.yaml: expected") as caught:
            read_options(path)
        assert "\n" not in str(caught.value)

    def test_no_file_and_a_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.yaml", tmp_path):
            with pytest.raises(InputError, match="expected a YAML file"):
                read_options(path)

    def test_a_yaml_file_builds_no_objects(self, tmp_path: Path) -> None:
        (tmp_path / "evil.yaml").write_text("epochs: !!python/object/apply:os.getcwd []\n")
        with pytest.raises(InputError):
            read_options(tmp_path / "evil.yaml")


class TestAssignments:
    def test_values_are_yaml(self) -> None:
        pairs = ["epochs=3", "class_prior=[0.5, 0.5]", "mode=point-only", "learning_rate=null", " seed = 4"]
        assert parse_assignments(pairs) == {
            "epochs": 3, "class_prior": [0.5, 0.5], "mode": "point-only", "learning_rate": None, "seed": 4,
        }  # fmt: skip

    def test_the_last_of_two_wins_and_a_value_may_hold_an_equals_sign(self) -> None:
        assert parse_assignments(["epochs=3", "epochs=4", "device=a=b"]) == {"epochs": 4, "device": "a=b"}

    @pytest.mark.parametrize("number", ["1e-3", "1E-3", "2e-05", "1.0e-3"])
    def test_a_number_with_an_exponent_is_a_number(self, number: str) -> None:
        """YAML 1.1 reads 1e-3 as text."""
        config = make_config(parse_assignments([f"learning_rate={number}"]))
        assert config.learning_rate == float(number)

    @pytest.mark.parametrize("pair", ["epochs", "", "epochs: 3"])
    def test_no_equals_sign(self, pair: str) -> None:
        with pytest.raises(InputError, match="expected key=value"):
            parse_assignments([pair])

    def test_a_value_that_is_no_yaml(self) -> None:
        with pytest.raises(InputError, match="option class_prior") as caught:
            parse_assignments(["class_prior=[0.5, 0.5"])
        assert "\n" not in str(caught.value)


class TestErrors:
    @pytest.mark.parametrize(
        ("unknown", "nearest"),
        [
            ("epoch", "epochs"),
            ("batchsize", "batch_size"),
            ("lr", "learning_rate"),
            ("ema_decay", "ema_end"),
            ("image_devisor", "image_divisor"),
            ("xyzzy", None),
        ],
    )
    def test_an_unknown_option_is_named_with_the_nearest(self, unknown: str, nearest: str | None) -> None:
        message = error_of({unknown: 1})
        assert f"'{unknown}'" in message
        named = message.rsplit("'", 2)[1]
        assert named in TrainConfig.model_fields
        if nearest in ("epochs", "batch_size", "image_divisor"):
            assert named == nearest

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("epochs", "many"),
            ("epochs", -1),
            ("epochs", 2.5),
            ("epochs", None),
            ("batch_size", 1),
            ("learning_rate", 0),
            ("weight_decay", -1),
            ("mode", "both"),
            ("recipe", "paper"),
            ("precision", "int8"),
            ("views", 0),
            ("strong_dropout", 1.0),
            ("strong_scale", [0.5]),
            ("threshold", "flexible"),
            ("kept_share", 0),
            ("watched", 0),
            ("ema_start", float("nan")),
            ("seed", -1),
        ],
    )
    def test_a_value_of_the_wrong_type_or_range_is_named(self, option: str, value: object) -> None:
        message = error_of({option: value})
        assert f"option {option}" in message
        assert repr(value).strip("[]") in message

    @pytest.mark.parametrize("prior", [(0.5, 0.6), (1.0, 0.0), (1.5, -0.5), (), (0.5, math.nan, 0.5)])
    def test_a_class_prior_is_positive_shares(self, prior: tuple[float, ...]) -> None:
        message = error_of({"class_prior": prior})
        assert "class_prior must be positive shares" in message

    @pytest.mark.parametrize("scale", [(1.25, 0.8), (0.0, 1.0), (-1.0, 1.0)])
    def test_a_range_of_scales_has_its_ends_in_order(self, scale: tuple[float, float]) -> None:
        with pytest.raises(InputError, match="strong_scale must be two factors, the smaller first"):
            make_config({"strong_scale": scale})

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"threshold_joint": 0.1}, "threshold_joint has no effect with threshold=adaptive"),
            ({"kept_share": 0.5, "recipe": "reference"}, "kept_share has no effect with threshold=fixed"),
            ({"alignment_weight": 0.5, "mode": "separate"}, "it needs mode=joint"),
            ({"alignment_temperature": 0.2, "mode": "point-only"}, "it needs mode=joint"),
            ({"kept_share": 0.5, "mode": "agreement"}, "kept_share has no effect with mode=agreement"),
            ({"threshold_image": 0.9, "threshold": "fixed"}, "it needs mode=separate or image-only"),
            ({"point_confidence": 0.5}, "point_confidence has no effect"),
            ({"batch_norm": "live", "mode": "image-only"}, "batch_norm has no effect with mode=image-only"),
            ({"layer_decay": 0.5, "mode": "point-only"}, "layer_decay has no effect with mode=point-only"),
            ({"point_confidence": 0.5, "mode": "agreement"}, ""),
            ({"point_confidence": 0.5, "joint_label": "winner"}, ""),
            ({"kept_share": 0.5, "anchor_share": 0.5}, ""),
        ],
    )
    def test_an_option_that_does_nothing_is_told(self, options: dict[str, Any], line: str) -> None:
        found = without_effect(make_config(options), options)
        assert len(found) == bool(line)
        assert line in "".join(found)

    def test_what_an_option_needs_exists(self) -> None:
        for name, needs in NEEDS.items():
            assert name in TrainConfig.model_fields
            for other, values in needs:
                assert set(values) <= set(get_args(TrainConfig.model_fields[other].annotation))

    def test_an_average_that_forgets_more_as_it_goes(self) -> None:
        assert "ema_end" in error_of({"ema_start": 0.9, "ema_end": 0.5})

    def test_a_configuration_does_not_change(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            TrainConfig().epochs = 3  # type: ignore[misc]

    def test_pre_training_has_bounds_too(self) -> None:
        with pytest.raises(ValueError, match="learning_rate"):
            PretrainConfig(learning_rate=0)
