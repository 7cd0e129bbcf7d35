"""Base classes of settings, which operators write, and of options, which senders write."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from pipeline.config.values import trimmed


class Settings(BaseModel):
    """Base class of a destination's settings, which the operator writes under `settings`. Unknown keys are errors.

    A setting is a secret if its name contains secret, token, key or password, or if it is marked with `Field(repr=False)`, such as an
    address that contains a key. pipeline/delivery/redaction.py hides secrets wherever text is shown or stored.

    Text with leading or trailing white space is an error, unless `free_texts` names the setting. For example, a key with the line
    feed of its file would be answered 401 for every hit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    free_texts: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _trimmed(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name not in cls.free_texts:
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str):
                    trimmed(text)
        return value


class NoSettings(Settings):
    """A destination without settings."""


class Options(BaseModel):
    """Base class of a destination's options, which the sender writes under the destination's name in `integrations`.

    A hit with invalid options becomes a dead letter of this connection, with the path of the error. Unknown keys are invalid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class AnyOptions(Options):
    """Options of destinations that forward them: every object is valid."""

    model_config = ConfigDict(extra="allow", frozen=True)
