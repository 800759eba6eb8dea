"""What every part of the configuration shares: unknown keys are refused, values are bounded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?$")]
"""A node label's key or value; Ray's expressions over labels are not taken."""


class Config(BaseModel):
    """A section of the configuration: unknown keys are errors, sections are immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _partial_sections_keep_their_defaults(cls, values: Any) -> Any:
        """A section given in part keeps the rest of what this place has as its default.

        Else `rewards.quality.sampling.max_tokens=40` alone would make the judge sample at the
        temperature of any sampling, not greedily as it does without.
        """
        if not isinstance(values, dict):
            return values
        merged = dict(values)
        for name, given in values.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(default, Config) and isinstance(given, dict):
                own = {key: getattr(default, key) for key in default.model_fields_set}
                merged[name] = own | given
        return merged

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, values: Any) -> Any:
        """YAML reads `yes` as true, which pydantic would take for 1."""
        fields = cls.model_fields
        for name, value in values.items() if isinstance(values, dict) else ():
            if (
                isinstance(value, bool)
                and name in fields
                and fields[name].annotation in (int, float)
            ):
                raise ValueError(f"{name} must be a number, not {str(value).lower()}")
        return values


def _is_function_name(value: str) -> str:
    module, colon, function = value.partition(":")
    parts = [*module.split("."), function]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(
            "a function is named module:function, for example playground.language:verify"
        )
    return value


FunctionName = Annotated[str, AfterValidator(_is_function_name)]
"""A function named `module:function`."""

Dtype = Literal["float32", "bfloat16"]


class SamplingConfig(Config):
    """How one role samples its tokens."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """Logits are divided by this; the learner divides by the same. The paper does not state it.
    0 is greedy, which is refused where the role is trained."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus. Below 1 the learner's distribution is not the sampled one; a warning says so."""
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one completion."""
    stop: list[str] = []
    """Texts that end a completion besides the model's own end token."""

    @field_validator("temperature")
    @classmethod
    def _as_vllm_takes_it(cls, temperature: float) -> float:
        if 0 < temperature < 0.01:
            raise ValueError("vLLM takes a temperature below 0.01 as 0.01: use 0, or 0.01 and more")
        return temperature
