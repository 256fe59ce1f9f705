"""Students on disk: Hugging Face directories with safetensors, read and written strictly.

Every tensor is used exactly once and every parameter is filled, or it is an error. Weights go from the file
straight into the shards of the devices; no second full copy is made.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from lalp_jax.errors import InputError
from lalp_jax.student.config import StudentConfig, config_json, read_config
from lalp_jax.student.model import Decoder
from lalp_jax.student.sharding import one_device_mesh, sharding_of
from lalp_jax.student.tensors import TABLE, Bounds, Entry

Dtype = Literal["float32", "bfloat16"]
Leaves = dict[Any, nnx.Param]
"""Parameters by path."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 * 2**30
"""A weight file is closed before it grows beyond this."""

DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is fetched from the hub: never code, never pickles."""

_COMPANIONS = ("generation_config.json", "*token*.json", "vocab.json", "merges.txt", "*.jinja", "*.model")
_STORED = ("F32", "BF16", "F16")


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """A student in memory.

    Attributes:
      graphdef: static half of `Decoder`; ``nnx.merge(graphdef, params)`` inside a jitted function.
      params: its parameters, sharded over the mesh it was loaded on.
      directory: where it was read from; None if it was made here.
    """

    config: StudentConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    directory: epath.Path | None = None


def load_student(directory: epath.PathLike, *, dtype: Dtype, mesh: Mesh | None = None) -> Student:
    """Reads a model directory (on a local disk) into sharded arrays of `dtype`.

    Args:
      mesh: from `make_mesh`; None: this process's first device.

    Raises:
      InputError: config.json or a weight file is missing or not supported; a tensor is missing, not known, or
        of another shape or kind than config.json calls for; the mesh does not divide a tensor.
    """
    directory = epath.Path(directory)
    config = read_config(directory)
    graphdef, state = nnx.split(nnx.eval_shape(functools.partial(_decoder, config, dtype, mesh, 0)))
    leaves: Leaves = dict(nnx.to_flat_state(state))
    entries = [entry for entry in TABLE if entry.path in leaves]
    with contextlib.ExitStack() as stack:
        files = _Files.open(directory, stack)
        _check(config, {entry: leaves[entry.path] for entry in entries}, files)
        params: Any = {
            entry.path: leaves[entry.path].replace(_load(entry, leaves[entry.path], files, mesh))
            for entry in entries
        }
    return Student(config, graphdef, nnx.from_flat_state(params), directory)


def init_student(config: StudentConfig, seed: int, dtype: Dtype, mesh: Mesh | None = None) -> Student:
    """A student with freshly drawn weights, made on the devices where they stay; the same on every mesh."""
    make = functools.partial(_decoder, config, dtype, mesh, seed)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    place = mesh or one_device_mesh()

    def shard(path: tuple[Any, ...], leaf: nnx.Variable) -> nnx.Variable:
        return leaf.replace(sharding_of(place, leaf.axes, leaf.shape, jax.tree_util.keystr(path)))

    shardings = jax.tree.map_with_path(shard, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    params = jax.jit(lambda: nnx.split(make())[1], out_shardings=shardings)()
    return Student(config, graphdef, params)


def save_student(student: Student, directory: epath.PathLike) -> None:
    """Writes safetensors and config.json, as transformers reads them, with the tokenizer files beside them.

    config.json keeps all that the student's own said; its dtype alone follows the weights as they now are. In
    a run of several processes all must call this; the first one writes.
    """
    directory = epath.Path(directory)
    leaves: Leaves = dict(nnx.to_flat_state(student.params))
    files = _plan(student.config, leaves)
    first = jax.process_index() == 0
    if first:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in [*directory.glob("model*.safetensors"), directory / INDEX]:
            stale.unlink(missing_ok=True)
    for file, parts in files.items():
        tensors = {name: _stored(entry, leaves[entry.path], layer) for name, entry, layer in parts}
        if first:
            _write_weights(directory / file, tensors)
    if first:
        if len(files) > 1:
            weight_map = {name: file for file, parts in files.items() for name, _, _ in parts}
            index = {"metadata": {}, "weight_map": weight_map}
            (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        _write_companions(student, directory)


def fingerprint(directory: epath.PathLike) -> str:
    """Identity of a student: sha256, in hex, over config.json and the whole content of its weight files."""
    directory = epath.Path(directory)
    names = ["config.json", *sorted(_weight_files(directory))]

    def digest(name: str) -> bytes:
        try:
            with (directory / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except FileNotFoundError as error:
            raise InputError("there is no such file", where=str(directory / name)) from error

    total = hashlib.sha256()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for name, part in zip(names, pool.map(digest, names), strict=True):
            total.update(name.encode() + b"\0" + part)
    return total.hexdigest()


def resolve_student(name: str) -> epath.Path:
    """The directory of a student: `name` itself if it is one, else the hub's model of that id, fetched once.

    Raises:
      InputError: neither a directory nor a model that can be fetched.
    """
    if "://" in name:
        what, remedy = f"{name} is not on a local disk", "copy the directory to this machine first"
        raise InputError(what, where="--student", remedy=remedy)
    path = epath.Path(name)
    if path.is_dir():
        return path
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"there is no directory {name}", where="--student")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return epath.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name} is not a directory, and it could not be fetched from the hub: {error}",
            where="--student",
            remedy="check the name, log in if the model is gated, or download it and name its directory",
        ) from error


def _decoder(config: StudentConfig, dtype: Dtype, mesh: Mesh | None, seed: int) -> Decoder:
    return Decoder(config, rngs=nnx.Rngs(seed), param_dtype=jnp.dtype(dtype), mesh=mesh)


@dataclasses.dataclass(frozen=True)
class _Files:
    """The open weight files of a directory, and which of them holds which tensor."""

    handles: dict[str, Any]
    where: dict[str, str]

    @classmethod
    def open(cls, directory: epath.Path, stack: contextlib.ExitStack) -> _Files:
        from safetensors import SafetensorError, safe_open

        handles: dict[str, Any] = {}
        where: dict[str, str] = {}
        for path in (directory / file for file in _weight_files(directory)):
            try:
                handle = stack.enter_context(safe_open(path, framework="numpy"))
            except FileNotFoundError as error:
                raise InputError("the index names this file, but it is missing", where=str(path)) from error
            except SafetensorError as error:
                raise InputError(f"not a whole safetensors file: {error}", where=str(path)) from error
            handles[str(path)] = handle
            for name in handle.keys():  # noqa: SIM118 - not a dictionary
                if name in where:
                    raise InputError(f"tensor {name} is in {where[name]} too", where=str(path))
                where[name] = str(path)
        return cls(handles, where)

    def tensor(self, name: str) -> Any:
        """The tensor as a thing to cut slices from; nothing is read yet."""
        return self.handles[self.where[name]].get_slice(name)


def _weight_files(directory: epath.Path) -> list[str]:
    """Names of the weight files, from the index if there is one."""
    index = directory / INDEX
    if index.exists():
        try:
            names = dict.fromkeys(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"no readable weight_map: {error!r}", where=str(index)) from error
        if any("/" in name or not name.endswith(".safetensors") for name in names):
            raise InputError("weight_map names something other than a file beside it", where=str(index))
        return list(names)
    if (directory / WEIGHTS).exists():
        return [WEIGHTS]
    pickled = any(directory.glob("*.bin"))
    raise InputError(
        "only pickled weights, and reading those could run code" if pickled else f"no {WEIGHTS}, no {INDEX}",
        where=str(directory),
        remedy="convert it once: load it with transformers and call save_pretrained",
    )


def _check(config: StudentConfig, params: dict[Entry, nnx.Param], files: _Files) -> None:
    """Every tensor known, none missing, each of the right shape and of a floating kind."""
    wanted = {
        name: entry.shape(*_one_layer(entry, param))
        for entry, param in params.items()
        for name in entry.names(config.num_layers)
    }
    for name in sorted(wanted.keys() - files.where.keys()):
        raise InputError(f"tensor {name} is missing", where=", ".join(files.handles))
    for name, file in files.where.items():
        if name not in wanted:
            if not _is_harmless(name, config, files):
                raise InputError(f"tensor {name} is not one that config.json calls for", where=file)
            continue
        tensor = files.tensor(name)
        shape = tuple(tensor.get_shape())
        if shape != wanted[name]:
            what = f"tensor {name} has shape {shape}, config.json calls for {wanted[name]}"
            raise InputError(what, where=file)
        if tensor.get_dtype() not in _STORED:
            what = f"tensor {name} is stored as {tensor.get_dtype()}; supported are {', '.join(_STORED)}"
            raise InputError(what, where=file)


def _is_harmless(name: str, config: StudentConfig, files: _Files) -> bool:
    """Whether a surplus tensor says nothing new: rotary frequencies, or a tied head like the embedding."""
    if name == "lm_head.weight" and config.tie_embeddings:
        return np.array_equal(files.tensor(name)[:], files.tensor("model.embed_tokens.weight")[:])
    return name.endswith(".rotary_emb.inv_freq")


def _one_layer(entry: Entry, param: nnx.Param) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Axes and sizes of a parameter without the axis of layers."""
    return (param.axes[1:], param.shape[1:]) if entry.layered else (param.axes, param.shape)


def _load(entry: Entry, param: nnx.Param, files: _Files, mesh: Mesh | None) -> jax.Array:
    """Reads a parameter, each device's part by itself and equal parts once."""
    sharding = sharding_of(mesh or one_device_mesh(), param.axes, param.shape, entry.name)
    names = entry.names(param.shape[0])
    axes, shape = _one_layer(entry, param)

    def read(name: str, bounds: Bounds) -> np.ndarray:
        return entry.read(files.tensor(name), axes, shape, bounds)

    @functools.cache
    def part(bounds: Bounds) -> np.ndarray:
        if not entry.layered:
            return read(names[0], bounds).astype(param.dtype, order="C")
        (first, end), *rest = bounds
        stacked = np.empty([end - first, *(stop - start for start, stop in rest)], param.dtype)
        for layer in range(first, end):
            stacked[layer - first] = read(names[layer], rest)
        return stacked

    def callback(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # None is for arrays without axes
        return part(tuple(cut.indices(size)[:2] for cut, size in zip(index, param.shape, strict=True)))

    return jax.make_array_from_callback(param.shape, sharding, callback, param.dtype)


_Part = tuple[str, Entry, int | None]


def _plan(config: StudentConfig, leaves: Leaves) -> dict[str, list[_Part]]:
    """Which tensors go into which weight file."""
    shards: list[list[_Part]] = [[]]
    filled = 0
    for entry in (entry for entry in TABLE if entry.path in leaves):
        names = entry.names(config.num_layers)
        size = leaves[entry.path].nbytes // len(names)
        for layer, name in enumerate(names):
            if shards[-1] and filled + size > SHARD_BYTES:
                shards.append([])
                filled = 0
            shards[-1].append((name, entry, layer if entry.layered else None))
            filled += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": part for i, part in enumerate(shards, 1)}


def _stored(entry: Entry, param: nnx.Param, layer: int | None) -> np.ndarray:
    """One tensor on the host, in the form of the file."""
    value = param.get_value()
    if layer is not None:
        value = jax.lax.dynamic_index_in_dim(value, np.int32(layer), keepdims=False)
    if not value.is_fully_addressable:
        from jax.experimental import multihost_utils

        value = multihost_utils.process_allgather(value, tiled=True)
    return entry.write(np.asarray(value), _one_layer(entry, param)[0])


def _write_weights(path: epath.Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def _write_companions(student: Student, directory: epath.Path) -> None:
    """Tokenizer, template and generation settings as they were; config.json last."""
    dtype = str(jax.tree.leaves(student.params)[0].dtype)
    if student.directory is None:
        config = dataclasses.replace(student.config, stored_dtype=dtype)
        text = json.dumps(config_json(config), indent=2) + "\n"
    else:
        text = (student.directory / "config.json").read_text()
        if student.config.stored_dtype != dtype:
            fields = json.loads(text)
            fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = dtype
            text = json.dumps(fields, indent=2) + "\n"
        if directory != student.directory:
            _copy(student.directory, directory, _COMPANIONS)
    (directory / "config.json").write_text(text)


def _copy(source: epath.Path, target: epath.Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            path.copy(target / path.name, overwrite=True)
