"""Every option of a training run, on one screen.

`reference` is the published behaviour, `crossmost` the same with repairs, each its own switch: METHOD.md beside this
file says what each is for (section 7), and what the rest means.
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

    recipe: Recipe = Field("crossmost", description="which values the switches have unless set")
    mode: Mode = Field("joint", description="where none is given: point-only for a base without images")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything drawn")

    # Schedule (METHOD 2.1)
    epochs: int = Field(20, ge=0, description="0 finds the centers and temperatures alone, without training")
    batch_size: int = Field(64, ge=2, description="clouds")
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    learning_rate: float | None = Field(None, gt=0, description="per 256 clouds; None: the card's")
    min_learning_rate_ratio: float = Field(
        0.05, ge=0, le=1, description="floor of the cosine, as a share of the peak"
    )
    warmup_epochs: float = Field(1.0, ge=0, description="of the learning rate, from zero")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW, on all but vectors")
    layer_decay: float = Field(0.65, gt=0, le=1, description="of the image tower, per layer")
    freeze_patch_encoder: bool = Field(True, description="the mini-PointNet's weights stay as they are")

    # Machine
    device: str = Field("auto", description="auto | cpu | cuda | cuda:1")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of what the networks compute; weights stay float32"
    )
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
    fairness_weight: float = Field(1.0, ge=0, description="mean prediction towards class_prior")
    mask_weight: float = Field(1.0, ge=0, description="masked patches and pixels rebuilt")
    global_local_weight: float = Field(0.2, ge=0, description="masked patches towards the whole")
    alignment_weight: float = Field(1.0, ge=0, description="lambda_x: points towards views; joint mode only")
    point_weight: float = Field(1.0, ge=0, description="lambda_P: all terms of the points")

    # Pseudo-labels, where the threshold is fixed (METHOD 2.2, the values of ScanObjectNN)
    threshold_joint: float = Field(
        0.82, ge=0, le=1, description="confidence of a kept label; threshold=fixed"
    )
    threshold_image: float = Field(0.80, ge=0, le=1, description="the same, of the views alone")
    threshold_point: float = Field(0.82, ge=0, le=1, description="the same, of the points alone")
    point_confidence: float = Field(
        1.0, gt=0, le=1, description="beta: scales that of the points; joint_label=winner, mode=agreement"
    )

    # Teacher (METHOD 1.5)
    ema_start: float = Field(0.99, ge=0, lt=1, description="share of the teacher that a step keeps, at first")
    ema_end: float = Field(0.9998, ge=0, lt=1, description="the same after the ramp")
    ema_ramp_steps: int = Field(400, ge=1, description="ramp where ema_ramp=steps")
    ema_ramp_epochs: float = Field(2.0, gt=0, description="ramp where ema_ramp=epochs")
    ema_memory_epochs: float = Field(
        2.0, gt=0, description="the ramp's end forgets a student within this many epochs; ema_ramp=epochs"
    )

    # Switches: the published value first, the repair last
    point_target: Literal["mask-token", "token", "patch"] = Field(
        "patch", description="what masked patches are rebuilt as; published: a token that is the same for all"
    )
    image_divisor: Literal["sequence", "channels"] = Field(
        "channels", description="what the pixels' loss is divided by; published: 1 + the number of patches"
    )
    alignment: Literal["instance", "pseudo-label"] = Field(
        "pseudo-label", description="which other clouds repel: all, or those without the same kept label"
    )
    joint_label: Literal["winner", "average"] = Field(
        "average", description="the surer branch speaks, or the mean of both at calibrated temperatures"
    )
    center: Literal["none", "mean", "balanced", "target"] = Field(
        "target", description="what each branch subtracts; target: what the branches speak for"
    )
    anchor: Literal["none", "base"] = Field(
        "base", description="whether the teacher stays anchor_share of the way from the base to the average"
    )
    threshold: Literal["fixed", "adaptive"] = Field(
        "adaptive", description="labels above a confidence, or the surest kept_share of each class"
    )
    teacher_views: Literal["one", "mean"] = Field("mean", description="how many views the teacher labels by")
    batch_norm: Literal["live", "frozen"] = Field(
        "frozen", description="statistics of the batch, or the base's"
    )
    classifier: Literal["decayed", "renormalized"] = Field(
        "renormalized",
        description="class vectors as they are and tau decayed, or used at unit length and tau not",
    )
    ema_ramp: Literal["steps", "epochs"] = Field(
        "epochs", description="what the teacher's memory is counted in"
    )
    fairness: Literal["batch", "moving-average"] = Field(
        "moving-average", description="whose mean prediction is kept even"
    )
    selection: Literal["last", "label-free"] = Field(
        "label-free", description="which epoch's networks are kept"
    )
    rendered_views: Literal["photometric", "geometric"] = Field(
        "geometric", description="RandAugment on rendered views, or crops and flips alone"
    )
    dropped_points: Literal["repeated", "removed"] = Field(
        "removed", description="dropped points pile up on the first and are filled up to 8192, or are gone"
    )
    exported: Literal["student", "teacher"] = Field("teacher", description="the network of eval and export")
    collapse: Literal["ignore", "stop"] = Field(
        "stop", description="whether a run ends where its labels shrink to few classes"
    )

    # What the switches need
    alignment_temperature: float = Field(0.1, gt=0, description="alignment=pseudo-label")
    anchor_share: float = Field(
        0.5, gt=0, le=1, description="of the way from the base to the average; anchor=base"
    )
    kept_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of the predictions of each class, the surest; None: 0.8, or in joint training all where the "
        "branches agree well before it (kappa 0.7); threshold=adaptive",
    )
    prior_momentum: float = Field(0.9, ge=0, lt=1, description="of fairness=moving-average")
    class_prior: tuple[float, ...] | None = Field(None, description="expected class shares; None: uniform")
    watched: int = Field(1024, ge=1, description="clouds on which every epoch is diagnosed and centered")

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.ema_end < self.ema_start:
            raise ValueError(f"ema_end {self.ema_end} is below ema_start {self.ema_start}")
        low, high = self.strong_scale
        if not 0 < low <= high:
            raise ValueError(f"strong_scale must be two factors, the smaller first, found {low} and {high}")
        prior = self.class_prior
        if prior is not None and not (prior and min(prior) > 0 and abs(sum(prior) - 1) <= 1e-3):
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


WITH_POINTS = ("mode", ("joint", "separate", "agreement", "point-only"))
WITH_IMAGES = ("mode", ("joint", "separate", "agreement", "image-only"))
Needs = tuple[tuple[str, tuple[str, ...]], ...]
NEEDS: dict[str, Needs] = {
    "threshold_joint": (("threshold", ("fixed",)), ("mode", ("joint",))),
    "threshold_image": (("threshold", ("fixed",)), ("mode", ("separate", "image-only"))),
    "threshold_point": (("threshold", ("fixed",)), ("mode", ("separate", "point-only"))),
    "threshold": (("mode", ("joint", "separate", "point-only", "image-only")),),
    "kept_share": (("threshold", ("adaptive",)), ("mode", ("joint", "separate", "point-only", "image-only"))),
    "joint_label": (("mode", ("joint",)),),
    "alignment": (("mode", ("joint",)),),
    "alignment_weight": (("mode", ("joint",)),),
    "alignment_temperature": (("alignment", ("pseudo-label",)), ("mode", ("joint",))),
    "anchor_share": (("anchor", ("base",)),),
    "prior_momentum": (("fairness", ("moving-average",)),),
    "ema_ramp_steps": (("ema_ramp", ("steps",)),),
    "ema_ramp_epochs": (("ema_ramp", ("epochs",)),),
    "ema_memory_epochs": (("ema_ramp", ("epochs",)),),
    **dict.fromkeys(("point_weight", "point_target", "batch_norm", "freeze_patch_encoder"), (WITH_POINTS,)),
    **dict.fromkeys(("image_divisor", "rendered_views", "teacher_views", "layer_decay"), (WITH_IMAGES,)),
}
"""Options that do something only where each of these others has one of the values."""


def without_effect(config: TrainConfig, stated: Iterable[str]) -> list[str]:
    """A line for each option that was asked for and does nothing beside the others.

    Args:
        config: the run's options, with the mode that the base can be trained in.
        stated: those that the user named.
    """
    lines = []
    for name in stated:
        for other, values in NEEDS.get(name, ()):
            if (found := getattr(config, other)) not in values:
                lines.append(
                    f"{name} has no effect with {other}={found}: it needs {other}={' or '.join(values)}"
                )
                break
    scaled = config.mode == "agreement" or (config.mode == "joint" and config.joint_label == "winner")
    if "point_confidence" in stated and not scaled:
        lines.append(
            "point_confidence has no effect: it needs joint_label=winner in joint mode, or mode=agreement"
        )
    return lines


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
