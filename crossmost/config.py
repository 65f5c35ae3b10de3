"""Every option of a training run, on one screen.

`reference` is the published behaviour, `crossmost` the same with the repairs of METHOD 7, each its own switch.
A recipe is a set of values for the switches; a YAML file and `--set key=value` override single ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crossmost.errors import InputError

Mode = Literal["joint", "separate", "point-only", "image-only", "agreement"]
Recipe = Literal["crossmost", "reference"]


class TrainConfig(BaseModel):
    """A training run; the defaults are the crossmost recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    recipe: Recipe = "crossmost"
    mode: Mode = Field("joint", description="where none is given: point-only for a base without images")
    seed: int = Field(0, ge=0, lt=2**32)

    # Schedule (METHOD 2.1)
    epochs: int = Field(20, ge=0, description="0 finds the centers and temperatures alone, without training")
    batch_size: int = Field(64, ge=2)
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    learning_rate: float | None = Field(None, gt=0, description="per 256 clouds; None: the card's")
    min_learning_rate_ratio: float = Field(
        0.05, ge=0, le=1, description="floor of the cosine, as a share of the peak"
    )
    warmup_epochs: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(0.65, gt=0, le=1, description="of the image tower, per layer")
    freeze_patch_encoder: bool = Field(True, description="the mini-PointNet's weights stay as they are")

    # Machine
    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    workers: int | None = Field(
        None, ge=0, description="processes that read and augment; null: none on a CPU, up to 8 beside a GPU"
    )

    # Data
    views: int = Field(
        4, ge=1, description="rendered around a cloud that brings none; the most the teacher sees"
    )
    scan_augment: Literal["none", "low", "moderate", "high"] = Field(
        "none", description="simulated scan before strong augmentation"
    )

    strong_scale: tuple[float, float] = Field(
        (0.8, 1.25), description="student's clouds; published: 0.5 to 2"
    )
    strong_translation: float = Field(0.1, ge=0, description="share of the extent; published: 0.5")
    strong_dropout: float = Field(
        0.6, ge=0, lt=1, description="highest share of points lost; published: 0.875"
    )

    # Loss weights (METHOD 1.11)
    fairness_weight: float = Field(1.0, ge=0)
    mask_weight: float = Field(1.0, ge=0)
    global_local_weight: float = Field(0.2, ge=0)
    alignment_weight: float = Field(1.0, ge=0, description="lambda_x, joint mode only")
    point_weight: float = Field(1.0, ge=0, description="lambda_P")

    # Pseudo-labels, where the threshold is fixed (METHOD 2.2, the values of ScanObjectNN)
    threshold_joint: float = Field(0.82, ge=0, le=1)
    threshold_image: float = Field(0.80, ge=0, le=1)
    threshold_point: float = Field(0.82, ge=0, le=1)
    point_confidence: float = Field(1.0, gt=0, le=1, description="beta: scales the point branch's confidence")

    # Teacher (METHOD 1.5)
    ema_start: float = Field(0.99, ge=0, lt=1)
    ema_end: float = Field(0.9998, ge=0, lt=1)
    ema_ramp_steps: int = Field(400, ge=1, description="ramp of the reference recipe")
    ema_ramp_epochs: float = Field(2.0, gt=0, description="ramp of the crossmost recipe")
    ema_memory_epochs: float = Field(
        2.0, gt=0, description="the ramp's end forgets a student within this many epochs"
    )

    # Switches: the published value first, the repair last
    point_target: Literal["mask-token", "token", "patch"] = "patch"
    image_divisor: Literal["sequence", "channels"] = "channels"
    alignment: Literal["instance", "pseudo-label"] = "pseudo-label"
    joint_label: Literal["winner", "average"] = "average"
    center: Literal["none", "mean", "balanced", "target"] = Field(
        "target", description="what each branch subtracts; target: what the branches speak for"
    )
    anchor: Literal["none", "base"] = "base"
    threshold: Literal["fixed", "adaptive"] = "adaptive"
    teacher_views: Literal["one", "mean"] = "mean"
    batch_norm: Literal["live", "frozen"] = "frozen"
    classifier: Literal["decayed", "renormalized"] = "renormalized"
    ema_ramp: Literal["steps", "epochs"] = "epochs"
    fairness: Literal["batch", "moving-average"] = "moving-average"
    selection: Literal["last", "label-free"] = "label-free"
    rendered_views: Literal["photometric", "geometric"] = "geometric"
    dropped_points: Literal["repeated", "removed"] = "removed"
    exported: Literal["student", "teacher"] = "teacher"
    collapse: Literal["ignore", "stop"] = "stop"

    # What the switches need
    alignment_temperature: float = Field(0.1, gt=0)
    anchor_share: float = Field(0.5, gt=0, le=1, description="of the way from the base to the average")
    kept_share: float = Field(0.8, gt=0, le=1, description="of the predictions of each class, the surest")
    prior_momentum: float = Field(0.9, ge=0, lt=1, description="of the moving average behind fairness")
    class_prior: tuple[float, ...] | None = Field(None, description="expected class shares; None: uniform")
    watched: int = Field(1024, ge=1, description="clouds on which every epoch is diagnosed and centered")

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.ema_end < self.ema_start:
            raise ValueError(f"ema_end {self.ema_end} is below ema_start {self.ema_start}")
        if self.class_prior is not None and (
            min(self.class_prior, default=0) <= 0 or abs(sum(self.class_prior) - 1) > 1e-3
        ):
            raise ValueError("class_prior must be positive shares that add up to 1")
        return self


SWITCHES: dict[str, str] = {
    "point_target": "mask-token",
    "image_divisor": "sequence",
    "alignment": "instance",
    "joint_label": "winner",
    "center": "none",
    "anchor": "none",
    "threshold": "fixed",
    "teacher_views": "one",
    "batch_norm": "live",
    "classifier": "decayed",
    "ema_ramp": "steps",
    "fairness": "batch",
    "selection": "last",
    "rendered_views": "photometric",
    "dropped_points": "repeated",
    "exported": "student",
    "collapse": "ignore",
}
"""Each switch with its value in the reference recipe; the field's default is the crossmost value."""


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The options a recipe sets; those of crossmost are the defaults."""
    if recipe == "crossmost":
        return {"recipe": recipe}
    published = {"strong_scale": (0.5, 2.0), "strong_translation": 0.5, "strong_dropout": 0.875}
    return {"recipe": recipe, **SWITCHES, **published}


def make_config(options: Mapping[str, Any]) -> TrainConfig:
    """Build a configuration: the recipe's values, then the given ones.

    Raises:
        InputError: an unknown option (with the nearest name), or a value that is not allowed.
    """
    for name in options:
        if name not in TrainConfig.model_fields:
            close = difflib.get_close_matches(name, TrainConfig.model_fields, n=1, cutoff=0.0)
            raise InputError(f"no option '{name}': the nearest is '{close[0]}'")
    recipe = options.get("recipe", "crossmost")
    _check_recipe(recipe, options)
    try:
        return TrainConfig(**{**recipe_values(recipe), **options})
    except ValidationError as error:
        raise InputError(explain_options(error)) from error


def beside_another_recipe(options: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    """The options of a file for a recipe that is asked for beside it: without what the file's own recipe sets.

    A file of all options, as `--print-config` writes it, would otherwise keep every switch of its own recipe.
    """
    own = options.get("recipe", "crossmost")
    if recipe is None or recipe == own:
        return dict(options)
    fields = {name: field.default for name, field in TrainConfig.model_fields.items()}
    usual = fields | recipe_values(own)
    return {
        name: value
        for name, value in options.items()
        if name not in usual or (tuple(value) if isinstance(value, list) else value) != usual[name]
    }


def _check_recipe(recipe: Any, options: Mapping[str, Any]) -> None:
    """Refuse a recipe by name that is the other one in all its switches."""
    other: dict[str, Any] = {name: TrainConfig.model_fields[name].default for name in SWITCHES}
    if recipe == "crossmost":
        other = dict(SWITCHES)
    if recipe in get_args(Recipe) and all(options.get(name) == value for name, value in other.items()):
        raise InputError(
            f"recipe={recipe}, but every switch is given with the other recipe's value: leave the switches out"
        )


def fit_to_base(config: TrainConfig, *, images: bool) -> TrainConfig:
    """The configuration as the base can be trained: where no mode was asked for, what there is of branches.

    Args:
        config: the run's options.
        images: whether the base has an image branch.

    Raises:
        InputError: a mode was asked for that needs the image branch which the base lacks.
    """
    if images or config.mode == "point-only":
        return config
    if "mode" in config.model_fields_set:
        raise InputError(
            f"mode={config.mode}: this base has no image branch; convert it again with --image, "
            "or --set mode=point-only"
        )
    return config.model_copy(update={"mode": "point-only"})


def explain_options(error: ValidationError) -> str:
    """The first problem of some options, in one line."""
    first = error.errors()[0]
    if not first["loc"]:  # of several options together
        return f"options: {first['msg']}"
    return f"option {'.'.join(str(part) for part in first['loc'])}: {first['msg']}, found {first['input']!r}"


def read_options(path: Path) -> dict[str, Any]:
    """Read options from a YAML file.

    Raises:
        InputError: no such file, or it holds no mapping.
    """
    try:
        options = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise InputError(f"{path}: expected 'option: value' lines, found {type(options).__name__}")
    return options


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` pairs; values are YAML.

    Raises:
        InputError: something without '=', or a value that is no YAML.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"expected key=value, found '{assignment}'")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"option {key}: '{value}' cannot be read as a value") from error
    return options


def explained_yaml(config: TrainConfig) -> str:
    """The whole configuration as YAML, with what each option means and may be as comments."""
    lines = []
    for name, value in config.model_dump(mode="json").items():
        field = TrainConfig.model_fields[name]
        line = f"{name}: {yaml.safe_dump([value], default_flow_style=True, width=1000).strip()[1:-1]}"
        allowed = " | ".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ""
        meaning = "; ".join(part for part in (allowed, field.description) if part)
        lines.append(f"{line}  # {meaning}" if meaning else line)
    return "\n".join(lines) + "\n"


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration as YAML, in the order of the fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
