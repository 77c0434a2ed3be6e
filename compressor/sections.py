"""Parts of a recipe that say how networks are compared, and what all parts have in common."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
OWN_METHODS = ("ours", "small_from_scratch")
"""Methods of a comparison that come with the package."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_as_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes` is true, and true would quietly count as 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("a number or text, not yes / no")
        return value


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """A seed given twice is one network counted twice: intervals over seeds would be too narrow."""
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds that differ")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_different)]


class CompareSection(Section):
    """Methods side by side on the recipe's network; drop, confidence and recovery are those of `compress`."""

    methods: dict[str, str] = Field(description="name -> ours, small_from_scratch, or path/file.py:function?argument=1")
    sizes: tuple[Share, ...] = Field(min_length=1, description="shares that each method is asked to keep")
    measure: Literal["params", "macs"] = "params"
    seeds: Seeds = Field(default=(0, 1, 2), min_length=1)
    only: dict[str, tuple[Share, ...]] = Field(default={}, description="name -> the sizes that it alone is asked for")
    stop_at: float = Field(
        default=3.0, gt=0, description="points lost (more than max_drop) at which a method is asked for no smaller size"
    )

    @field_validator("methods")
    @classmethod
    def _names_of_files(cls, methods: dict[str, str]) -> dict[str, str]:
        if not methods or any(not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) for name in methods):
            raise ValueError("one method or more, their names of letters, digits, _, ., + and -")
        for name, spec in methods.items():  # ratios are of `ours` and of peers: every other name is a peer's
            if name != spec and (own := {name, spec} & set(OWN_METHODS)):
                raise ValueError(
                    f"`{min(own)}: {min(own)}`: these names are those of the built-in methods, and no others"
                )
        return methods

    @field_validator("sizes", "only")
    @classmethod
    def _sizes_of_their_own(cls, value: Any) -> Any:
        """Cells lie in files that are named by four decimals of the size."""
        for sizes in value.values() if isinstance(value, dict) else (value,):
            if len({f"{size:.4f}" for size in sizes}) < len(set(sizes)) or not sizes:
                raise ValueError("one size or more, which differ in their first four decimals")
        return value

    @model_validator(mode="after")
    def _only_of_methods(self) -> CompareSection:
        for name in self.only:
            if name not in self.methods:
                raise ValueError(f"in `only` names of methods ({', '.join(self.methods)}), not {name!r}")
        return self
