"""The mesh, and the one table that says which logical axis lies on which mesh axes.

Parameters and activations name their axes by what they are (`embed`, `ffn`, `vocab`, …); only this file knows
where that puts them. Mesh axes, outermost first:

    data    copies of the student; each works on its own share of the batch
    fsdp    parameters are cut along `embed` and gathered layer by layer; the batch is cut along it too
    tensor  feed-forward columns, key-value heads and vocabulary are cut; every layer pays a reduction
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lalp_jax.errors import InputError

Axes = tuple[str | None, ...]
Table = Mapping[str, tuple[str, ...]]

PARAMETERS: Table = MappingProxyType(
    {
        "layers": (),
        "embed": ("fsdp",),
        "ffn": ("tensor",),
        "kv_heads": ("tensor",),
        "queries_per_kv": (),
        "head_dim": (),
        "vocab": ("tensor",),
        "norm": (),
    }
)
"""Where parameters rest."""

GATHERED: Table = MappingProxyType({**PARAMETERS, "embed": ()})
"""Where the parameters of one layer are while it computes: gathered along fsdp, still cut along tensor."""

ACTIVATIONS: Table = MappingProxyType(
    {
        "batch": ("data", "fsdp"),
        "slots": (),
        "tokens": (),
        "layers": (),
        "embed": (),
        "ffn": ("tensor",),
        "kv_heads": ("tensor",),
        "queries_per_kv": (),
        "head_dim": (),
        "vocab": ("tensor",),
    }
)
"""Where what is computed lies: the batch (groups of windows, rows of a full pass) over data and fsdp."""


class MeshShape(NamedTuple):
    """Devices along each mesh axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


def parse_mesh(spec: str) -> MeshShape:
    """Reads ``data=2,fsdp=2,tensor=2``; an axis that is not named is 1.

    Raises:
      InputError: an unknown or repeated axis, or a size that is not a whole number above 0.
    """
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in MeshShape._fields or name in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"cannot read {part.strip()!r} in {spec!r}",
                where="--mesh",
                remedy="name each axis at most once, for instance data=2,fsdp=4,tensor=1",
            )
        sizes[name] = int(size)
    return MeshShape(**sizes)


def make_mesh(spec: str | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes data, fsdp, tensor over `devices` (default: all); without a spec all lie on data.

    Raises:
      InputError: the spec cannot be read or does not use exactly the devices there are.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = MeshShape(data=len(devices)) if spec is None else parse_mesh(spec)
    if math.prod(shape) != len(devices):
        product = " x ".join(map(str, shape))
        raise InputError(
            f"{spec} needs {product} = {math.prod(shape)} devices, but there are {len(devices)}",
            where="--mesh",
            remedy=f"choose sizes whose product is {len(devices)}",
        )
    return jax.make_mesh(shape, MeshShape._fields, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def sharding_of(
    mesh: Mesh, axes: Axes, shape: Sequence[int], name: str, table: Table = PARAMETERS
) -> NamedSharding:
    """The sharding of an array from the logical names of its axes (None: not cut).

    Args:
      name: what the array is called in messages.

    Raises:
      InputError: a cut axis whose size the devices along it do not divide.
      ValueError: axes that do not fit the shape, or two of them on one mesh axis (a mistake in this program).
    """
    if len(axes) != len(shape):
        raise ValueError(f"{name}: {len(axes)} axes {axes} for shape {tuple(shape)}")
    placed = [table[axis] if axis is not None else () for axis in axes]
    used = [mesh_axis for mesh_axes in placed for mesh_axis in mesh_axes]
    if len(used) != len(set(used)):
        raise ValueError(f"{name}: two of its axes {axes} lie on the same mesh axis ({', '.join(used)})")
    for axis, size, mesh_axes in zip(axes, shape, placed, strict=True):
        parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in mesh_axes)
        if size % parts:
            raise InputError(
                f"axis {axis!r} of size {size} cannot be cut into {parts} equal parts",
                where=name,
                remedy=f"choose --mesh sizes for {' and '.join(mesh_axes)} whose product divides {size}",
            )
    return NamedSharding(mesh, PartitionSpec(*(mesh_axes or None for mesh_axes in placed)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis is the batch (cut over data and fsdp), whatever follows is whole."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATIONS["batch"]))


def batch_parts(mesh: Mesh) -> int:
    """Number of equal parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in ACTIVATIONS["batch"])


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def gathered(value: jax.Array, mesh: Mesh | None, axes: Axes, name: str) -> jax.Array:
    """A parameter as it is used: whole along fsdp. Without this the compiler may cut activations instead."""
    if mesh is None:
        return value
    return jax.lax.with_sharding_constraint(value, sharding_of(mesh, axes, value.shape, name, GATHERED))


def one_device_mesh() -> Mesh:
    """A mesh of this process's first device."""
    return make_mesh(None, np.asarray(jax.local_devices())[:1].tolist())
