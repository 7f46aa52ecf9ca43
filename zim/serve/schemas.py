"""Bodies of requests. Multipart forms carry the same fields, files for pictures, JSON for lists."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Point = Annotated[list[Number], Field(min_length=2, max_length=3)]
Stroke = Annotated[
    list[Annotated[list[Number], Field(min_length=2, max_length=2)]], Field(max_length=5000)
]
#: formats of files with 16 bits, by output
DEEP = {"rgba": ("png",), "alpha": ("png", "tiff")}
_HEX = re.compile(r"#[0-9a-fA-F]{3}(?:[0-9a-fA-F]{3})?")


def from_base64(value: Any) -> Any:
    """Return bytes for base64 text, with or without ``data:...;base64,`` and line breaks.

    Bytes stay.
    """
    if not isinstance(value, str):
        return value
    text = value.split(",", 1)[1] if value.startswith("data:") and "," in value else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("expected base64") from error


#: bytes of a file, or base64 text of them
Picture = Annotated[bytes, BeforeValidator(from_base64)]


class Body(BaseModel):
    """A request's body; unknown fields are errors, NaN and infinity are no numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImageBody(Body):
    """A picture: a file, base64 text, or the id of an embedding."""

    image: Picture | None = Field(None, description="picture, base64 in JSON, a file in multipart")
    embedding: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="id from /v1/embeddings"
    )
    model: str | None = Field(None, max_length=100, description="one of /v1/models")


class ObjectBody(Body):
    """One object: any mixture of clicks, a box, strokes and a mask; nothing means everything."""

    points: Annotated[list[Point], Field(max_length=200)] | None = Field(
        None, description="[[x, y, label]], label 1 object, 0 background"
    )
    box: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = Field(
        None, description="[x0, y0, x1, y1]"
    )
    scribble: Annotated[list[Stroke], Field(max_length=100)] | None = Field(
        None, description="strokes, [[[x, y], ...], ...]"
    )
    mask: Picture | None = Field(None, description="picture of the mask, of the same size")
    candidate: int = Field(0, ge=0, le=3, description="0 the answer, 1 to 3 an alternative")


class MatteBody(ImageBody, ObjectBody):
    """A prompt and what to return."""

    objects: Annotated[list[ObjectBody], Field(min_length=1, max_length=32)] | None = Field(
        None, description="several objects; pictures show them together"
    )
    candidates: Literal[1, 3] = 1
    output: Literal["json", "rgba", "alpha", "composite", "overlay"] = "json"
    format: Literal["png", "webp", "tiff", "jpeg"] = "png"
    bits: Literal[8, 16] = 8
    background: str = Field("white", max_length=40, description="colour name or #rrggbb")
    background_image: Picture | None = Field(None, description="picture behind the composite")
    foreground: Literal["ml", "none"] = "ml"
    refine: bool = False
    preview: bool = Field(False, description="answer at up to 1280 pixels a side; JSON only")

    @field_validator("background")
    @classmethod
    def _colour(cls, value: str) -> str:
        # only what is certainly a colour: elsewhere in zim a background may be a path
        if _HEX.fullmatch(value) or value.lower() in ImageColor.colormap:
            return value
        raise ValueError("expected a colour name or #rrggbb")

    @model_validator(mode="after")
    def _agrees(self) -> MatteBody:
        problem = self._prompt_problem() or self._answer_problem()
        if problem:
            raise ValueError(problem)
        return self

    def _prompt_problem(self) -> str:
        beside = sorted(self.model_fields_set & set(ObjectBody.model_fields))
        if self.objects is not None and beside:
            return f"{beside[0]} beside objects; put it into one of them"
        if self.background_image is not None and "background" in self.model_fields_set:
            return "background and background_image; send one of them"
        return ""

    def _answer_problem(self) -> str:
        """Say what of format, depth and the like does not go with the output."""
        if self.output == "json":
            if self.refine:
                return "refine is for files; choose another output than json"
            return "" if self.format == "png" else "json holds PNG files; leave format out"
        if self.preview or self.candidates == 3:
            field = "preview" if self.preview else "candidates 3"
            return f"{field} is for output json; {self.output} is a file at full size"
        if self.output == "rgba" and self.format == "jpeg":
            return "jpeg has no transparency; use png, webp or tiff for rgba"
        if self.bits == 16 and self.format not in DEEP.get(self.output, ()):
            return (
                f"{self.output} as {self.format} has 8 bits; "
                "16 are for rgba as png, and for alpha as png or tiff"
            )
        return ""

    def wanted(self) -> list[ObjectBody]:
        """Return the objects asked for; top-level prompts are one object."""
        if self.objects:
            return self.objects
        own = {k: getattr(self, k) for k in ("points", "box", "scribble", "candidate")}
        return [ObjectBody(**own).model_copy(update={"mask": self.mask})]


class AutoBody(ImageBody):
    """What to search for."""

    max_masks: int = Field(32, ge=1, le=200)
    points_per_side: int | None = Field(None, ge=1, le=32)
