"""What ``COMMAND --help`` shows: options in groups, each with what its value stands for."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import typing
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from mct_fast.run.settings import choices

_PLACEHOLDERS = (
    (r"(.*_)?seed", "SEED"),
    (r"device", "DEVICE"),
    (r"preset|dataset|plugin|model|files", "NAME"),
    (r"trajectories|store", "STORE"),
    (r"resume|runs?", "RUN"),
    (r"data_path|out|to_mtt", "FOLDER"),
    (r"test_path|labels_path", "FILE"),
    (r"iterations|.*_iterations|eval_it|checkpoint_every|lr_decay_every", "ITERATIONS"),
    (r"epochs|.*_epochs?|epoch_.*", "EPOCHS"),
    (r"syn_steps|steps|window", "STEPS"),
    (r"lr|lr_(?!decay).*|random_lrs", "STEP_SIZE"),
    (r"batch_.*|ipc|micro_batch|real_batch|samples", "IMAGES"),
    (r"num_experts|experts|parallel|per_file", "EXPERTS"),
    (r"num_eval", "NETWORKS"),
    (r"students", "STUDENTS"),
    (r"image_size", "PIXELS"),
    (r"keep_mb", "MIB"),
    (r".*fraction|mom|mom_img|ema|dropout|max_skipped|subsample_positive|real_hard|weight", "SHARE"),
    (r"target|features|drop|numeric|categorical|group|split_column|id|time", "COLUMN"),
)
"""What stands for the value of an option in help, by the option's name; others show their type."""

_BY_TYPE = {"bool": "{True,False}", "int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}
_GROUPS = {"config": "", "goal": "objective", "optimizer": "optimiser", "networks": "network", "protocol": "engine"}
"""Headings of groups that are called otherwise than their fields."""


@functools.cache
def described() -> ConstructorRegistry:
    """How tyro takes settings apart: their groups, what each option stands for, and what it says about itself."""
    registry = ConstructorRegistry()
    registry.struct_rule(_described)
    return registry


def _described(info: StructTypeInfo) -> StructConstructorSpec | None:
    kind: Any = info.type
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    hints, documents = get_type_hints(kind, include_extras=True), _documents(kind)
    fields = []
    for field in dataclasses.fields(kind):
        default = getattr(info.default, field.name) if isinstance(info.default, kind) else field.default
        hint: Any = hints[field.name]
        if dataclasses.is_dataclass(field.default):
            hint = Annotated[hint, tyro.conf.arg(name=_GROUPS.get(field.name, field.name))]
        elif field.type != "bool" and field.name not in choices(kind):
            hint = Annotated[hint, tyro.conf.arg(metavar=_placeholder(field.name, str(field.type)))]
        default = tyro.MISSING if default is dataclasses.MISSING else default
        fields.append(StructFieldSpec(field.name, hint, default, helptext=documents.get(field.name)))
    return StructConstructorSpec(instantiate=kind, fields=tuple(fields))


def _placeholder(name: str, hint: str) -> str:
    several = " ..." if "tuple" in hint else ""
    for pattern, word in _PLACEHOLDERS:
        if re.fullmatch(pattern, name):
            return word + several
    return next((word for kind, word in _BY_TYPE.items() if kind in hint), name.upper()) + several


def _documents(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = typing.cast(ast.ClassDef, declared).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
