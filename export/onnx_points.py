"""What stands before the encoder in `model.onnx`: normalise, fill, sample, group, in standard operators.

Each step is a function of its own, local to the model, so that a reader sees the pipeline and a TensorRT plug-in of
the same name may take a step over: `FarthestPointSampling` carries the attributes by which TensorRT finds one.
`Group` cuts patches of the nearest points, `BallGroup` of the first within a radius; a model has the one of its card.
The arithmetic is that of `crossmost.runtime.sampling`: float32, squared distances summed x, y, z, ties to the lowest
index.
"""

from __future__ import annotations

import onnx
from onnx import compose, parser

from crossmost.models.point_cards import PointCard
from crossmost.runtime.sampling import squared_radius

ALREADY_NORMALIZED = 1e-5
"""A cloud whose centroid and extent are this close to 0 and 1 passes through untouched, bit for bit: what the runtime
normalised in float64 must not be rounded once more."""

NORMALIZE = """
<opset_import: ["" : 18], domain: "crossmost">
Normalize (points) => (normalized) {
  one = Constant <value_ints = [1]> ()
  all = Constant <value_ints = [1, 2]> ()
  last = Constant <value_ints = [2]> ()
  zero = Constant <value_float = 0.0> ()
  unit = Constant <value_float = 1.0> ()
  close = Constant <value_float = {close}> ()

  given_centroid = ReduceMean (points, one)
  given_offset = Abs (given_centroid)
  given_farthest = ReduceMax (given_offset, last)
  centered = LessOrEqual (given_farthest, close)
  given_squares = Mul (points, points)
  given_squared = ReduceSum <keepdims = 1> (given_squares, last)
  given_most = ReduceMax (given_squared, one)
  given_norm = Sqrt (given_most)
  given_excess = Sub (given_norm, unit)
  given_error = Abs (given_excess)
  scaled = LessOrEqual (given_error, close)
  already = And (centered, scaled)

  lowest = ReduceMin (points, one)
  shifted = Sub (points, lowest)
  centroid = ReduceMean (shifted, one)
  moved = Sub (shifted, centroid)
  size = Abs (moved)
  extent = ReduceMax (size, all)
  flat = Equal (extent, zero)
  divisor = Where (flat, unit, extent)
  bounded = Div (moved, divisor)
  squares = Mul (bounded, bounded)
  squared = ReduceSum <keepdims = 1> (squares, last)
  most = ReduceMax (squared, one)
  norm = Sqrt (most)
  length = Where (flat, unit, norm)
  computed = Div (bounded, length)
  normalized = Where (already, points, computed)
}
"""

FILL = """
<opset_import: ["" : 18], domain: "crossmost">
Fill <least> (points) => (filled) {
  axis = Constant <value_int = 1> ()
  zero = Constant <value_int = 0> ()
  need = Constant <value_int: int = @least> ()
  shape = Shape (points)
  have = Gather <axis = 0> (shape, axis)
  count = Max (have, need)
  step = Range (zero, count, axis)
  index = Mod (step, have)
  filled = Gather <axis = 1> (points, index)
}
"""

FARTHEST_POINT_SAMPLING = """
<opset_import: ["" : 18], domain: "crossmost">
FarthestPointSampling <num_samples, plugin_namespace, plugin_version> (xyz) => (indices) {
  one = Constant <value_int = 1> ()
  one_axis = Constant <value_ints = [1]> ()
  two_axis = Constant <value_ints = [2]> ()
  yes = Constant <value = bool {1}> ()
  infinity = Constant <value_float = inf> ()
  num = Constant <value_int: int = @num_samples> ()
  steps = Sub (num, one)

  x_column, y_column, z_column = Split <axis = 2, num_outputs = 3> (xyz)
  x = Squeeze (x_column, two_axis)
  y = Squeeze (y_column, two_axis)
  z = Squeeze (z_column, two_axis)
  xx = Mul (x, x)
  yy = Mul (y, y)
  zz = Mul (z, z)
  xy = Add (xx, yy)
  norms = Add (xy, zz)
  start = ArgMax <axis = 1, keepdims = 1> (norms)
  shape = Shape (x)
  unseen = Expand (infinity, shape)
  nearest_end, last_end, chosen = Loop (steps, yes, unseen, start) <body = sample (
      int64 step, bool go, float[B, N] nearest, int64[B, 1] last
    ) => (bool go_on, float[B, N] nearer, int64[B, 1] farthest, int64[B, 1] picked) {
      go_on = Identity (go)
      last_x = GatherElements <axis = 1> (x, last)
      last_y = GatherElements <axis = 1> (y, last)
      last_z = GatherElements <axis = 1> (z, last)
      dx = Sub (x, last_x)
      dy = Sub (y, last_y)
      dz = Sub (z, last_z)
      dxx = Mul (dx, dx)
      dyy = Mul (dy, dy)
      dzz = Mul (dz, dz)
      dxy = Add (dxx, dyy)
      distances = Add (dxy, dzz)
      nearer = Min (nearest, distances)
      farthest = ArgMax <axis = 1, keepdims = 1> (nearer)
      picked = Identity (farthest)
  }>
  flat = Squeeze (chosen, two_axis)
  later = Transpose <perm = [1, 0]> (flat)
  indices = Concat <axis = 1> (start, later)
}
"""

GROUP = """
<opset_import: ["" : 18], domain: "crossmost">
{name} <{attributes}> (points, xyz, indices) => (patches, centers) {
  one_axis = Constant <value_ints = [1]> ()
  two_axis = Constant <value_ints = [2]> ()
  three_axis = Constant <value_ints = [3]> ()
  from_zero = Constant <value_ints = [0]> ()
  to_three = Constant <value_ints = [3]> ()
  k = Constant <value_int: int = @neighbors> ()
  k_row = Unsqueeze (k, from_zero)
  g = Constant <value_int: int = @groups> ()
  g_row = Unsqueeze (g, from_zero)
  c = Constant <value_int: int = @channels> ()
  c_row = Unsqueeze (c, from_zero)

  center_rows = Unsqueeze (indices, two_axis)
  centers = GatherND <batch_dims = 1> (xyz, center_rows)

  x_column, y_column, z_column = Split <axis = 2, num_outputs = 3> (xyz)
  x = Transpose <perm = [0, 2, 1]> (x_column)
  y = Transpose <perm = [0, 2, 1]> (y_column)
  z = Transpose <perm = [0, 2, 1]> (z_column)
  center_x, center_y, center_z = Split <axis = 2, num_outputs = 3> (centers)
  dx = Sub (x, center_x)
  dxx = Mul (dx, dx)
  dy = Sub (y, center_y)
  dyy = Mul (dy, dy)
  dxy = Add (dxx, dyy)
  dz = Sub (z, center_z)
  dzz = Mul (dz, dz)
  distances = Add (dxy, dzz)
{members}
  whole = Constant <value_ints = [0, -1, 1]> ()
  member_rows = Reshape (members, whole)
  picked = GatherND <batch_dims = 1> (points, member_rows)
  patch_shape = Concat <axis = 0> (from_zero, g_row, k_row, c_row)
  absolute = Reshape (picked, patch_shape)
  patch_xyz = Slice (absolute, from_zero, to_three, three_axis)
  middle = Unsqueeze (centers, two_axis)
  relative = Sub (patch_xyz, middle)
  rest = Slice (absolute, to_three, c_row, three_axis)
  patches = Concat <axis = 3> (relative, rest)
}
"""

NEAREST = """
  nearest, members = TopK <axis = -1, largest = 0, sorted = 1> (distances, k_row)
"""

IN_BALL = """
  limit = Constant <value_float: float = @squared_radius> ()
  farther = Greater (distances, limit)
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  shape = Shape (points)
  count = Gather <axis = 0> (shape, one)
  order = Range (zero, count, one)
  place = Cast <to = 1> (order)
  nowhere = Cast <to = 1> (count)
  place_or_nowhere = Where (farther, nowhere, place)
  lowest, ranks = TopK <axis = -1, largest = 0, sorted = 1> (place_or_nowhere, k_row)
  first = Slice (lowest, from_zero, one_axis, two_axis)
  missing = Equal (lowest, nowhere)
  filled = Where (missing, first, lowest)
  members = Cast <to = 7> (filled)
"""
"""Indices are float32 here, which every TopK orders: exact up to 2^24 points."""

PIPELINE = """
<ir_version: 10, opset_import: ["" : 18, "crossmost" : 1]>
sampling (float[batch, points, {channels}] points) => (
  float[batch, {groups}, {neighbors}, {channels}] patches, float[batch, {groups}, 3] centers
) {{
  columns = Constant <value_ints = [2]> ()
  first = Constant <value_ints = [0]> ()
  third = Constant <value_ints = [3]> ()
  width = Constant <value_ints = [{channels}]> ()
  given_xyz = Slice (points, first, third, columns)
  colors = Slice (points, third, width, columns)
  unit_xyz = crossmost.Normalize (given_xyz)
  joined = Concat <axis = 2> (unit_xyz, colors)
  filled = crossmost.Fill <least = {least}> (joined)
  xyz = Slice (filled, first, third, columns)
  indices = crossmost.FarthestPointSampling <
    num_samples = {groups}, plugin_namespace = "crossmost", plugin_version = "1"
  > (xyz)
  patches, centers = crossmost.{group} <{values}> (filled, xyz, indices)
}}
"""


def sampling_model(card: PointCard) -> onnx.ModelProto:
    """A graph that cuts clouds into patches: points (B, N, C) to patches (B, G, K, C) and centers (B, G, 3).

    Any N of at least 1; a cloud with fewer points than the encoder needs is filled up by repeating them.
    """
    sizes = {"channels": card.channels, "groups": card.groups, "neighbors": card.neighbors}
    name, members, attributes = "Group", NEAREST, dict[str, float](sizes)
    if card.radius is not None:
        name, members = "BallGroup", IN_BALL
        attributes["squared_radius"] = float(squared_radius(card.radius))
    values = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    model = parser.parse_model(PIPELINE.format(**sizes, least=card.least, group=name, values=values))
    grouping = GROUP.replace("{name}", name).replace("{attributes}", ", ".join(attributes))
    normalizing = NORMALIZE.replace("{close}", repr(ALREADY_NORMALIZED))
    functions = (normalizing, FILL, FARTHEST_POINT_SAMPLING, grouping.replace("{members}", members))
    model.functions.extend(parser.parse_function(text) for text in functions)
    return model


def points_model(card: PointCard, encoder: onnx.ModelProto) -> onnx.ModelProto:
    """Join sampling and encoder: points (B, N, C) to embedding (B, D).

    Args:
        card: of the encoder.
        encoder: a graph of `patches` and `centers`.
    """
    return compose.merge_models(
        sampling_model(card), encoder, io_map=[("patches", "patches"), ("centers", "centers")]
    )
