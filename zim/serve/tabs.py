"""Pages that other parts add through the entry points ``zim.serve_tabs``."""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import Field, create_model, model_validator

from zim import plugins
from zim.errors import ZimError
from zim.protocols import ServeTab, TabField
from zim.serve.schemas import Body, ImageBody, ObjectBody, Picture

log = logging.getLogger(__name__)


def load_tabs() -> dict[str, ServeTab]:
    """Return the tabs that can be used, by name; others are left out with a line in the log."""
    tabs: dict[str, ServeTab] = {}
    for name in plugins.names("zim.serve_tabs"):
        try:
            tab = plugins.find("zim.serve_tabs", name)
            if not isinstance(tab, ServeTab):
                raise ZimError("it does not follow zim.protocols.ServeTab")
            tab.ready()
        except Exception as error:  # a broken part of somebody else's must not stop the service
            log.warning("tab %s is left out: %s", name, " ".join(str(error).split()))
            continue
        tabs[name] = tab
    return tabs


def describe(name: str, tab: ServeTab) -> dict[str, Any]:
    """Return what the page needs to draw a tab."""
    return {
        "name": name,
        "title": tab.title,
        "endpoint": f"/v1/{tab.endpoint}",
        "summary": tab.summary,
        "needs_matte": tab.needs_matte,
        "fields": [vars(f) | {"choices": list(f.choices)} for f in tab.fields],
    }


class TabBody(ImageBody):
    """What a tab that needs a matte takes: a picture, and the objects or their matte."""

    objects: list[ObjectBody] | None = Field(None, max_length=32)
    mask: Picture | None = Field(None, description="a matte instead of objects, of the same size")

    @model_validator(mode="after")
    def _agrees(self) -> TabBody:
        if self.objects is not None and self.mask is not None:
            raise ValueError("objects and mask; send one of them")
        return self


def body_of(tab: ServeTab) -> type[ImageBody]:
    """Return the schema of a tab's requests: a picture, the tab's own fields, objects or a mask.

    A tab that works on the picture alone takes neither objects nor a mask.
    """
    values = create_model(
        f"{tab.endpoint.title()}Values",
        __base__=Body,
        **{
            field.name: (_type(field), Field(field.default, **_limits(field)))
            for field in tab.fields
        },  # pyright: ignore
    )
    return create_model(
        f"{tab.endpoint.title()}Body",
        __base__=TabBody if tab.needs_matte else ImageBody,
        values=(values, Field(default_factory=values)),
    )


def _type(field: TabField) -> Any:
    if field.kind == "choice":
        return Literal[field.choices]
    return {"text": str, "number": float, "flag": bool}[field.kind]


def _limits(field: TabField) -> dict[str, Any]:
    limits: dict[str, Any] = {"description": field.label}
    if field.kind == "text":
        limits["max_length"] = 500
    if field.kind == "number":
        limits |= {"ge": field.low, "le": field.high}
    return limits
